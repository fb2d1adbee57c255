"""What a manifest says of files (`fairseq.data.manifest`), read off the files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairseq.data.index_formats import read_counts
from fairseq.data.manifest import Entry, dictionary_of, is_dictionary
from fairseq.file_io import size_and_checksum


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
        files[name] = Entry(os.path.getsize(path), known.get(name) or f"{size_and_checksum(path)[1]:08x}", **more)
    return files
