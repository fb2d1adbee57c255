"""One thread that writes checkpoints while training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs one job at a time. The thread is no daemon: a program that ends waits for its last checkpoint."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` in the background after the one before it; raises that one's error."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                logger.error("%s", error)  # `wait` may never be called
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written; raises the error of the last job, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
