"""Signals that ask a run to end: it goes on to the end of its step, saves, and exits with a status of its own.

Cluster managers send them before they take a machine away. Handlers only remember; the loops of training and validation
look. Ctrl-C ends a run at once, unless it hits a moment in which Python drops the exception: then at the end of the step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 75
"""Exit status of a run that has saved because of a signal and can be started again (EX_TEMPFAIL of sysexits.h)."""
NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP")


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
    """Remember signals in this block. Those that were ignored before (``nohup``) still are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Received.name, _Received.ctrl_c = None, False
    before: dict[int, Any] = {}
    handlers = {**dict.fromkeys(NAMES, _remember), "SIGINT": _interrupt}
    for number, handler in ((getattr(signal, name, None), handler) for name, handler in handlers.items()):
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _remember(number: int, frame: object) -> None:
    _Received.name = _Received.name or signal.Signals(number).name


def _interrupt(number: int, frame: object) -> None:
    _Received.ctrl_c = True
    raise KeyboardInterrupt
