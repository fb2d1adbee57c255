"""What a manifest says of files (`fairseq.data.manifest`), read off the files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairseq.data.index_formats import read_counts
from fairseq.data.manifest import Entry, dictionary_of, is_dictionary

_BLOCK = 1 << 22


def checksum(path: str | os.PathLike[str]) -> str:
    crc = 0
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def describe_files(
    folder: str | os.PathLike[str], names: Iterable[str], checksums: Mapping[str, str] | None = None
) -> dict[str, Entry]:
    """The entries of the files ``names`` in ``folder``; each is read once, unless its checksum is known already.

    Raises DataError for a damaged index.
    """
    known = checksums or {}
    files: dict[str, Entry] = {}
    for name in sorted(names, key=lambda name: (not is_dictionary(name), name)):  # which the others refer to
        path = Path(folder, name)
        more: dict[str, Any] = {}
        if is_dictionary(name):
            with open(path, "rb") as handle:
                more["symbols"] = sum(1 for _ in handle)
        elif name.endswith(".idx"):
            dtype, sentences, tokens = read_counts(str(path), os.path.getsize(path.with_suffix(".bin")))
            own = files.get(dictionary_of(name.removesuffix(".idx")) or "")
            more = {"sentences": sentences, "tokens": tokens, "dtype": dtype.name, "dictionary": own and own.crc32}
        files[name] = Entry(os.path.getsize(path), known.get(name) or checksum(path), **more)
    return files
