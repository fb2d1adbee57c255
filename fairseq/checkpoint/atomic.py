"""Files that are either complete or not there: written beside their name, flushed to the disk, then renamed.

At every moment, a kill or a power failure included, the final name holds the old or the new contents in full.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from typing import IO, Any

import torch

from fairseq.errors import CheckpointError

logger = logging.getLogger(__name__)

ATTEMPTS = 3
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # network file systems


def atomic_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to ``path``. Raises CheckpointError; then ``path`` is as it was and no temporary file remains."""
    write_atomically(path, lambda file: torch.save(obj, file))


def atomic_copy(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copy the file ``source`` to ``path``.

    A copy, not a hard link: a user who edits or truncates one of the names must not lose the others. File systems that can
    share the blocks of a copy do so.
    """

    def copy(file: _Watched) -> None:
        with open(source, "rb") as original:
            remaining = os.fstat(original.fileno()).st_size
            # Where the system call is missing or refused, the plain loop below goes on where this stopped.
            with contextlib.suppress(OSError, AttributeError):
                while remaining:
                    done = os.copy_file_range(original.fileno(), file.file.fileno(), remaining)
                    if done == 0:
                        break
                    remaining -= done
            offset = original.seek(0, os.SEEK_CUR)
            file.file.seek(offset)
            shutil.copyfileobj(original, file, 1 << 20)

    write_atomically(path, copy)


class _Watched:
    """A file that remembers the system's error: torch wraps a failing write into an error of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_atomically(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Call ``write(file)`` on a temporary file in the directory of ``path``, then put it in place."""
    target = os.fspath(path)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _write_once(target, write)
            return
        except OSError as error:
            if error.errno not in TRANSIENT or attempt == ATTEMPTS:
                raise CheckpointError(
                    f"cannot write checkpoint {target}: {error.strerror or error}; what was there before is untouched; "
                    "free some space or choose another save_dir"
                ) from error
            logger.warning("writing %s failed (%s); trying again", target, error.strerror)
            time.sleep(attempt)


def _write_once(target: str, write: Callable[[Any], Any]) -> None:
    temporary = temporary_name(target)
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            watched = _Watched(file)
            try:
                write(watched)
                file.flush()
            except Exception as error:
                with contextlib.suppress(OSError):
                    file.close()  # its buffer cannot be written either
                if isinstance(error, OSError) or watched.error is None:
                    raise
                raise watched.error from error
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # an interrupt by the user too
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(target) or ".")


def sync_directory(directory: str) -> None:
    """Make the rename durable, where the system has such a thing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(target: str) -> str:
    """Names the process, so that two of them never write the same file and a dead one's can be recognized."""
    return f"{target}.{socket.gethostname()}-{os.getpid()}.tmp"


def remove_leftovers(directory: str) -> None:
    """Delete the temporary files and directories that killed processes of this machine left in ``directory``.

    Only call this before writing: a process id may be used again, then a file of our own id is a leftover too.
    """
    pattern = re.compile(rf".+\.(?:pt|shards)\.{re.escape(socket.gethostname())}-(\d+)\.tmp")
    for name in os.listdir(directory):
        match = pattern.fullmatch(name)
        if match and not _is_running(int(match.group(1))):
            remove(os.path.join(directory, name))


def remove(path: str) -> None:
    """Delete a file or a directory, if that is possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        os.unlink(path)


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
