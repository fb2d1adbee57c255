"""Old names of `fairseq.file_utils` and `fairseq.data.indexed_dataset`: archives, file endings, numbers in index files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from fairseq.compat.aliases import fetch
from fairseq.data.index_formats import data_file_path, index_file_path
from fairseq.errors import DataNotFoundError
from fairseq.models.hub import model_directory

logger = logging.getLogger("fairseq.file_utils")

IOPathManager = None  # the optional back end for remote storage


def load_archive_file(archive_file: str) -> str | None:
    """The directory of a model: a directory itself, or an archive or address, downloaded and unpacked; None for neither."""
    try:
        return str(model_directory(archive_file, archive_file, "the files of a model"))
    except DataNotFoundError as error:
        logger.info("%s", error)
        return None


def read_set_from_file(filename: str | os.PathLike[str]) -> set[str]:
    """The lines of a file."""
    with open(filename, encoding="utf-8") as handle:
        return {line.rstrip() for line in handle}


def get_file_extension(path: str, dot: bool = True, lower: bool = True) -> str:
    extension = os.path.splitext(path)[1]
    extension = extension if dot else extension[1:]
    return extension.lower() if lower else extension


def safe_readline(fd: IO[str]) -> str:
    """The next line of a text file that may stand within a character; it goes back to where that begins."""
    position = fd.tell()
    while True:
        try:
            return fd.readline()
        except UnicodeDecodeError:
            position -= 1
            fd.seek(position)


def read_longs(f: IO[bytes], n: int) -> np.ndarray:
    """The next ``n`` int64 of a file."""
    return np.frombuffer(f.read(8 * n), dtype=np.int64).copy()


def write_longs(f: IO[bytes], a: Any) -> None:
    f.write(np.array(a, dtype=np.int64).tobytes())


def get_available_dataset_impl() -> list[str]:
    """Formats of corpora."""
    return ["raw", "lazy", "cached", "mmap"]


def dataset_exists(path: str, impl: str) -> bool:
    """Whether a corpus of that format is at ``path``."""
    if impl == "raw":
        return Path(path).exists()
    return Path(index_file_path(path)).exists() and Path(data_file_path(path)).exists()


def get_indexed_dataset_to_local(path: str) -> str:
    """``path``: files are local."""
    return path


def import_all(directory: str, namespace: str) -> None:
    """Import every module and package of ``directory``, which is that of the package ``namespace``."""
    for path in sorted(Path(directory).iterdir()):
        if not path.name.startswith(("_", ".")) and (path.suffix == ".py" or path.is_dir()):
            fetch(f"{namespace}.{path.stem}")
