"""Signals that ask a run to end: it goes on to the end of its step, saves, and exits with a status of its own.

Handlers only remember; the loops of training and validation look. Ctrl-C ends a run at once, unless it hits a moment in
which Python drops the exception: then at the end of the step.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from fairseq.ending import ENDING, handling


class _Received:
    name: str | None = None
    ctrl_c = False


class InterruptedPass(Exception):
    """A validation was left because the run is to end."""


def received() -> str | None:
    """The name of the first signal that has asked this run to end."""
    return _Received.name


def raise_dropped_interrupt() -> None:
    """Raise the KeyboardInterrupt that got lost in a finalizer or in a fork."""
    if _Received.ctrl_c:
        raise KeyboardInterrupt


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Remember signals in this block."""
    _Received.name, _Received.ctrl_c = None, False
    with handling({**dict.fromkeys(ENDING, _remember), "SIGINT": _interrupt}):
        yield


def _remember(number: int, frame: object) -> None:
    _Received.name = _Received.name or signal.Signals(number).name


def _interrupt(number: int, frame: object) -> None:
    _Received.ctrl_c = True
    raise KeyboardInterrupt
