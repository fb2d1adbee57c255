"""Signals that ask a command which makes files to end: it takes away what it has begun, ends its workers, and says so.

Training has better to do: it saves (`fairseq.training.signals`).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from fairseq.cli.common import fail
from fairseq.ending import handling

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")


class _Asked(BaseException):
    """Not an Exception: nothing but the end of the command handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Moment:
    defers = False
    pending: int | None = None


@contextlib.contextmanager
def ends_when_asked(program: str) -> Iterator[None]:
    """On SIGTERM and SIGHUP leave this block as on an error, and end ``program`` with a sentence and the usual status."""
    try:
        with handling(dict.fromkeys(_NAMES, _handle)):
            yield
    except _Asked as asked:
        name = signal.Signals(asked.number).name
        fail(program, f"ended by {name}; what was not finished is removed", 128 + asked.number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A block of renames that signals do not interrupt: they wait for its end."""
    _Moment.defers, _Moment.pending = True, None
    try:
        yield
    finally:
        _Moment.defers = False
    if _Moment.pending is not None:
        _raise(_Moment.pending)


def _handle(number: int, frame: object) -> None:
    if _Moment.defers:
        _Moment.pending = number
    else:
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else _Asked(number)
