"""One writer at a time: a directory is held by a lock that the system gives up when its owner ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fairseq.errors import ConfigError

PATIENCE = 10.0  # seconds in which the children of an owner that was killed may end
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def claimed(directory: str | os.PathLike[str], who: str, advice: str, beside: bool = False) -> Iterator[int | None]:
    """Hold ``directory`` for the command ``who``. It is made where missing, unless the lock is to be ``beside`` it.

    Yields the descriptor of the lock: children that inherit it hold the directory until they end too. None where the file
    system has no locks. Raises ConfigError, with ``advice``, when another process holds it.
    """
    held = Path(directory)
    path = held.parent / f".{held.name}.lock" if beside else held / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, who, f"works in {held}; {advice}")
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # before it is given up: whoever opened it meanwhile looks again
            os.close(descriptor)


def _locked(path: Path, who: str, refusal: str) -> int | None:
    end = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            if error.errno not in _HELD:
                return None
            if not _has_ended(owner) or time.monotonic() > end:
                raise ConfigError(f"{owner or 'another process'} {refusal}") from None
            time.sleep(0.1)
            continue
        if _is_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{who} (process {os.getpid()} on {socket.gethostname()})\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its owner has just removed it


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _has_ended(owner: str) -> bool:
    """Whether the process that wrote ``owner`` is one of this machine that is there no more, or not known yet."""
    words = owner.removesuffix(")").split()
    if len(words) < 4 or not words[-3].isdigit():
        return True
    if words[-1] != socket.gethostname():
        return False
    try:
        os.kill(int(words[-3]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
