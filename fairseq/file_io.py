"""Data directories by name, files that commands write, and ``PathManager``, which plugins of the original expect.

Only local paths are served: the optional iopath back end of the original is not part of this project, so a
``something://`` path fails like any missing file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from fairseq.errors import ConfigError

PathLike = str | os.PathLike[str]

NOT_FETCHED = "not-fetched:"  # before an address that a file names, which whoever needs it refuses
SCRATCH = ".preprocess-"  # how directories are called in which commands make data, and which they leave when killed


def split_paths(paths: str, separator: str = os.pathsep, base: str | os.PathLike[str] = "") -> list[str]:
    """Data directories in ``paths``: separated by ``:``, or by ``|`` when a ``://`` address is among them.

    A ``:`` in the name of a directory that is there (from ``base``) separates nothing, unless its parts are there, too.
    """
    if "://" in paths:
        return paths.split("|")
    parts = paths.split(separator)
    if len(parts) > 1 and Path(base, paths).is_dir() and not all(Path(base, part).is_dir() for part in parts):
        return [paths]
    return parts


@contextlib.contextmanager
def complete_file(path: PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes the place of ``path`` when the block ends without an error; until then the old one stays.

    ``mode``: ``w`` for text, ``wb`` for bytes. A link keeps pointing to its file, and a file its permissions. Devices and
    pipes are written directly.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, mode, **text) as handle:
            yield handle
        return
    beside = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{os.getpid()}")
    try:
        with open(beside, mode, **text) as handle:
            yield handle
        if os.path.exists(target):
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:  # an interrupt by the user too
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def size_and_checksum(path: PathLike) -> tuple[int, int]:
    """The bytes of a file, and their CRC-32, which notices damage as the one in zip archives does."""
    size = crc = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def copy_file(source: PathLike, path: PathLike) -> None:
    """Copy ``source`` to ``path``, where it appears at once."""
    with open(source, "rb") as original, complete_file(path, "wb") as copy:
        shutil.copyfileobj(original, copy)


def check_outputs(outputs: Iterable[PathLike], inputs: Iterable[PathLike]) -> None:
    """Raise ConfigError when an output is the file of an input (whatever the spelling or link), or that of another one."""
    taken = {_identity(path): f"the input {os.fspath(path)}" for path in inputs if _is_plain(path)}
    for path in outputs:
        if not _is_plain(path):
            continue
        if _identity(path) in taken:
            raise ConfigError(f"the output {os.fspath(path)} is {taken[_identity(path)]}; choose another output file")
        taken[_identity(path)] = f"the output {os.fspath(path)} already"


def _is_plain(path: PathLike) -> bool:
    """Not a device or pipe, nor the - of standard input and output."""
    return os.fspath(path) != "-" and (os.path.isfile(path) or not os.path.exists(path))


def _identity(path: PathLike) -> object:
    """What two names of one file (hard links included) have in common."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


class PathManager:
    """Local file operations with the original's method names and return values."""

    @staticmethod
    def open(
        path: PathLike,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open ``path``. Unlike the original, text defaults to UTF-8 on every platform."""
        if encoding is None and "b" not in mode:
            encoding = "utf-8"
        return open(path, mode, buffering=buffering, encoding=encoding, errors=errors, newline=newline)

    @staticmethod
    def opena(
        path: PathLike,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        callback_after_file_close: Callable[[None], None] | None = None,
    ) -> IO[Any]:
        """The original's asynchronous open. Writing here is synchronous, so the callback must be None."""
        if callback_after_file_close is not None:
            raise NotImplementedError("PathManager.opena writes synchronously and takes no callback_after_file_close")
        return PathManager.open(path, mode, buffering, encoding, errors, newline)

    @staticmethod
    def async_close() -> bool:
        """Nothing is pending, ever."""
        return True

    @staticmethod
    def copy(src_path: PathLike, dst_path: PathLike, overwrite: bool = False) -> bool:
        """Copy a file; False when the destination exists and ``overwrite`` is off."""
        if os.path.exists(dst_path) and not overwrite:
            return False
        shutil.copyfile(src_path, dst_path)
        return True

    @staticmethod
    def copy_from_local(local_path: PathLike, dst_path: PathLike, overwrite: bool = False) -> bool:
        return PathManager.copy(local_path, dst_path, overwrite)

    @staticmethod
    def get_local_path(path: PathLike, **kwargs: Any) -> str:
        return os.fspath(path)

    exists = staticmethod(os.path.exists)
    isfile = staticmethod(os.path.isfile)
    isdir = staticmethod(os.path.isdir)
    islink = staticmethod(os.path.islink)
    ls = staticmethod(os.listdir)
    rm = staticmethod(os.remove)
    rename = staticmethod(os.replace)  # atomic on one file system
    chmod = staticmethod(os.chmod)

    @staticmethod
    def mkdirs(path: PathLike) -> None:
        """Create ``path`` and its parents; an empty path (the parent of a bare file name) is the current directory."""
        if os.fspath(path):
            os.makedirs(path, exist_ok=True)

    @staticmethod
    def supports_rename(path: PathLike) -> bool:
        return True

    @staticmethod
    def register_handler(handler: Any) -> None:
        raise NotImplementedError("PathManager serves local files only; mount remote storage instead of registering it")

    @staticmethod
    def path_requires_pathmanager(path: PathLike) -> bool:
        return False
