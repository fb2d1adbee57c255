"""`BufferedIterator`: a background thread that keeps a few batches ready."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("fairseq.data.iterators")

_END = object()
_WARM_UP_SECONDS = 5 * 60
_WARNING_EVERY_SECONDS = 15 * 60
_POLL_SECONDS = 0.1
_JOIN_SECONDS = 5.0


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(source: Iterator[Any], limit: int | None, out: queue.Queue[Any], stop: threading.Event) -> None:
    """Put up to ``limit`` elements of ``source`` into ``out``, then the end mark or the error; give up on ``stop``."""

    def put(element: Any) -> bool:
        while not stop.is_set():
            try:
                out.put(element, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    try:
        taken = 0
        while (limit is None or taken < limit) and not stop.is_set():
            try:
                element = next(source)
            except StopIteration:
                break
            if not put(element):
                return
            taken += 1
        put(_END)
    except BaseException as error:  # handed to the consumer, who raises it
        put(_Failure(error))


def _shut_down(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(_JOIN_SECONDS)


class BufferedIterator:
    """Up to ``size`` elements of ``iterable`` are made ahead of use, in a thread started by the first ``next``.

    The thread ends when the elements do, and when this object is dropped or the program exits.
    """

    def __init__(self, size: int, iterable: Any) -> None:
        self._iterable = iterable
        self.total: int = len(iterable)
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._close: weakref.finalize[Any, Any] | None = None
        self._started = self._warned = 0.0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> BufferedIterator:
        return self

    def take(self, n: int) -> BufferedIterator:
        """End after ``n`` elements; to be called before the first ``next``."""
        self.total = min(self.total, n)
        if hasattr(self._iterable, "take"):
            self._iterable.take(n)
        return self

    def _start(self) -> None:
        # The source is opened here, not in the thread: worker processes are best forked by the main thread.
        source = iter(self._iterable)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(source, self.total, self._queue, stop), daemon=True)
        self._close = weakref.finalize(self, _shut_down, stop, thread)
        thread.start()
        self._started = self._warned = time.monotonic()

    def __next__(self) -> Any:
        if self._close is None:
            self._start()
        self._watch()
        element = self._queue.get()
        if element is _END or isinstance(element, _Failure):
            self._queue.put(element)  # for further calls
            if isinstance(element, _Failure):
                raise element.error
            raise StopIteration
        return element

    def _watch(self) -> None:
        """Mention a buffer that runs dry: a few minutes after the start, and then rarely."""
        now = time.monotonic()
        if self._queue.qsize() >= min(2, max(1, self._queue.maxsize // 2)) or now - self._started < _WARM_UP_SECONDS:
            return
        if now - self._warned > _WARNING_EVERY_SECONDS:
            logger.debug(
                "Data loading buffer is empty or nearly empty. This may indicate a data loading bottleneck, and "
                "increasing the number of workers (--num-workers) may help."
            )
            self._warned = now
