"""A process that another one started does not outlive it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import parent_process


def when_parent_ends(act: Callable[[], object]) -> None:
    """Call ``act``, in a thread, as soon as the process that started this one is gone, however it ended."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        act()

    threading.Thread(target=watch, daemon=True).start()
