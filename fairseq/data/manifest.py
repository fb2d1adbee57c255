"""``manifest.json`` beside data files: what was written, so that damage and files that do not belong together are noticed.

    {"version": 1, "program": "fairseq 0.13.0", "files": {
      "dict.txt": {"bytes": 21, "crc32": "7bd26c8a", "symbols": 4},
      "train.bin": {"bytes": 80, "crc32": "09e4ad3b"},
      "train.idx": {"bytes": 78, "crc32": "c1f2a9be", "sentences": 5, "tokens": 40, "dtype": "uint16",
                    "dictionary": "7bd26c8a"}}}

``dictionary`` is the checksum of the ``dict.txt`` that the ids are numbers of. Everything in it can be read off the files,
so that a manifest can be made for old ones too. Opening data compares sizes, which costs nothing;
``fairseq-validate-data`` compares the rest. The checksum is that of zip archives and gzip files: at several GB/s it takes
no time beside reading, and it notices damage (it is no protection against somebody who changes files on purpose).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fairseq import __version__
from fairseq.data.text import json_value
from fairseq.errors import DataError
from fairseq.file_io import complete_file

logger = logging.getLogger(__name__)

NAME = "manifest.json"
VERSION = 1
_LARGEST = 1 << 26  # bytes of a manifest

_warned: set[str] = set()


@dataclass(frozen=True)
class Entry:
    """What is known of a file; of an index also what it describes, of a dictionary the number of its rows."""

    bytes: int
    crc32: str
    symbols: int | None = None
    sentences: int | None = None
    tokens: int | None = None
    dtype: str | None = None
    dictionary: str | None = None


Files = Mapping[str, Entry]
_TYPES = {field.name: str if "str" in str(field.type) else int for field in fields(Entry)}


def is_dictionary(name: str) -> bool:
    """Whether ``name`` is ``dict.txt``, or ``dict.en.txt`` of a language."""
    return name.startswith("dict.") and name.endswith(".txt")


def dictionary_of(dataset: str) -> str | None:
    """The name of the dictionary of ``dataset`` (``train``, ``train.en-de.en``); None for one whose integers are no ids."""
    parts = dataset.split(".")
    if len(parts) == 1:
        return "dict.txt"
    return f"dict.{parts[2]}.txt" if len(parts) == 3 and "-" in parts[1] else None


def write_manifest(path: str | os.PathLike[str], files: Files) -> None:
    """Write a manifest to ``path``."""
    rows = {
        name: {key: value for key, value in asdict(entry).items() if value is not None}
        for name, entry in sorted(files.items())
    }
    content = {"version": VERSION, "program": f"fairseq {__version__}", "files": rows}
    with complete_file(path) as handle:
        json.dump(content, handle, indent=1, ensure_ascii=False)
        handle.write("\n")


def read_manifest(folder: str | os.PathLike[str]) -> Files | None:
    """The manifest of ``folder``; None when there is none. Raises DataError for a damaged one."""
    path = Path(folder, NAME)
    try:
        found = path.stat()
    except OSError:
        return None
    return _read(str(path), found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=64)
def _read(path: str, changed: int, size: int) -> Files:
    """``changed`` and ``size`` belong to the key of the cache: a file that was replaced is read again."""
    try:
        if size > _LARGEST:
            raise ValueError(f"it has {size:,} bytes")
        content = json_value(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}, the only one that is known")
        return {name: _entry(name, row) for name, row in content["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        folder = shlex.quote(os.path.dirname(path))
        reason = str(error) if isinstance(error, ValueError) else f"it lacks {error}"
        raise DataError(
            f"{path} is damaged ({reason}); fairseq-validate-data --write-manifest {folder} checks the files and makes a new one"
        ) from None


def _entry(name: str, row: dict[str, Any]) -> Entry:
    if os.path.basename(name) != name:
        raise ValueError(f"{name!r} is not the name of a file")
    known = {key: row[key] for key in _TYPES if row.get(key) is not None}
    for key, value in known.items():
        if type(value) is not _TYPES[key] or (isinstance(value, int) and value < 0):
            raise ValueError(f"{key} of {name!r} is {value!r}")
    return Entry(**known)


def check_opened(path: str) -> None:
    """Compare the files of the dataset at the path prefix ``path`` with the sizes in the manifest, if there is one.

    Raises DataError for ``.bin`` and ``.idx``. A text (a dictionary, plain text) may have been edited on purpose: a warning.
    """
    folder, name = os.path.split(path)
    files = read_manifest(folder or ".")
    if not files:
        return
    for file in (f"{name}.bin", f"{name}.idx"):
        difference = _difference(folder, file, files)
        if difference:
            raise DataError(f"{difference}; {_advice(folder, 'the file is')}")
    own = dictionary_of(name)
    for file in filter(None, (name, own)):
        difference = _difference(folder, file, files)
        if difference:
            _warn(f"{difference}: it was changed after preprocessing; {_advice(folder, 'that is')}")
    index = files.get(f"{name}.idx")
    if index and own and own in files and index.dictionary not in (None, files[own].crc32):
        _warn(f"{path} was made with another {own} than the one that is beside it now; {_advice(folder, 'that is')}")


def check_opened_text(path: str | os.PathLike[str]) -> None:
    """Warn of a text, such as a file of labels, whose size is not the one in the manifest beside it, if there is one."""
    folder, name = os.path.split(path)
    difference = _difference(folder, name, read_manifest(folder or ".") or {})
    if difference:
        _warn(f"{difference}: it was changed after preprocessing; {_advice(folder, 'that is')}")


def _difference(folder: str, name: str, files: Files) -> str | None:
    path, entry = os.path.join(folder, name), files.get(name)
    if entry is None or not os.path.exists(path) or os.path.getsize(path) == entry.bytes:
        return None
    return f"{path} has {os.path.getsize(path):,} bytes, but {NAME} beside it says {entry.bytes:,}"


def _advice(folder: str, what: str) -> str:
    place = shlex.quote(folder or ".")
    return (
        f"fairseq-validate-data {place} tells what is wrong, and, if {what} meant to be so,"
        f" fairseq-validate-data --write-manifest {place} accepts it"
    )


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)
