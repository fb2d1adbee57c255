"""How processes come to an end: by signals, with handlers that stand for a while, and with the process that started them.

A run that was interrupted hands the signals on, once it has saved, to the handlers that it found: submitit's, which asks
SLURM to start the job again.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import parent_process
from typing import Any

ENDING = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
"""Sent by cluster managers, some of them, before they take a machine away."""
INTERRUPTED = 75
"""Exit status of a run that has saved because of a signal and can be started again (EX_TEMPFAIL of sysexits.h)."""


@contextlib.contextmanager
def handling(handlers: Mapping[str, Callable[[int, Any], None]]) -> Iterator[None]:
    """Handle signals, by name, in this block. Those that were ignored before (``nohup``) still are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        handlers[signal.Signals(number).name](number, frame)

    for name in handlers:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    interrupted = False
    try:
        yield
    except SystemExit as end:
        interrupted = end.code == INTERRUPTED
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        for number in dict.fromkeys(came if interrupted else ()):
            if callable(before[number]):
                before[number](number, None)


def hear_no_more() -> None:
    """For a process that ends now with `INTERRUPTED`: a manager that sees one process end first ends the others, whose
    status would be that of a signal."""
    if threading.current_thread() is threading.main_thread():
        for name in ENDING:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)


def when_parent_ends(act: Callable[[], object]) -> None:
    """Call ``act``, in a thread, as soon as the process that started this one is gone, however it ended."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        act()

    threading.Thread(target=watch, daemon=True).start()
