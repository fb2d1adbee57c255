"""Batches in a given order, collated by this process or by workers, and a background thread that keeps a few ready."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.data

from fairseq.ending import ENDING, when_parent_ends
from fairseq.errors import FairseqError, TrainingError

logger = logging.getLogger("fairseq.data.iterators")


class _EpochDataset(torch.utils.data.Dataset):
    """What workers that outlive an epoch hold: every request names the epoch it belongs to.

    Such workers keep the dataset as it was when they were forked; without this, masks would stay those of the first
    epoch for the whole run.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.epoch: int | None = None

    def __getitems__(self, request: tuple[int | None, Sequence[int]]) -> list[Any]:
        epoch, batch = request
        if epoch is not None and epoch != self.epoch:
            self.dataset.set_epoch(epoch)
            self.epoch = epoch
        return [self.dataset[i] for i in batch]


class _Order:
    """The batch sampler of a loader: whatever order was set last. An iterator keeps the order it was started with."""

    def __init__(self) -> None:
        self.batches: Sequence[Any] = ()
        self.epoch: int | None = None
        self.sends_epoch = False

    def __iter__(self) -> Iterator[Any]:
        batches, epoch = self.batches, self.epoch
        return ((epoch, batch) for batch in batches) if self.sends_epoch else iter(batches)


def leave_signals_to_parent(worker: int) -> None:
    """In a data worker: signals that a whole process group gets are for its parent, which tells it when to end."""
    for name in {*ENDING, "SIGINT"} - {"SIGTERM"}:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_for_parent, daemon=True).start()
    # torch's workers look for a new parent, and never find one where theirs has ended before they began to look.
    when_parent_ends(functools.partial(os._exit, 0))


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Around the fork of workers: what signals may do to them and to this process.

    SIGTERM cannot end a worker before `leave_signals_to_parent` is called in it. And when a worker dies, torch's handler of
    SIGCHLD raises wherever this process is, in the middle of an update or a save: it is taken away, and reading says so.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]), signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_for_parent() -> None:
    """On SIGTERM from the parent, which sends it where a worker does not end by itself."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


class BatchLoader:
    """A torch DataLoader that can be read again in another order.

    Args:
        dataset: items by index.
        collate_fn: list of items to batch.
        num_workers: worker processes (torch gives each of them one thread); 0: this process.
        timeout: seconds to wait for a worker; 0: for ever.
        persistent_workers: keep the workers between epochs instead of forking them anew.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int = 0,
        timeout: int = 0,
        persistent_workers: bool = False,
    ) -> None:
        self.epoch: int | None = None
        """The dataset's epoch, which persistent workers are sent; None: theirs stays as it is."""
        self._order = _Order()
        self._order.sends_epoch = persistent_workers and num_workers > 0 and hasattr(dataset, "set_epoch")
        self._loader = torch.utils.data.DataLoader(
            _EpochDataset(dataset) if self._order.sends_epoch else dataset,
            collate_fn=collate_fn,
            batch_sampler=self._order,  # type: ignore[arg-type]
            num_workers=num_workers,
            # torch warns about pinned memory where there is no device to pin it for.
            pin_memory=torch.cuda.is_available(),
            timeout=timeout if num_workers > 0 else 0,
            worker_init_fn=leave_signals_to_parent,
            persistent_workers=persistent_workers and num_workers > 0,
        )

    def open(self, batches: Sequence[Any]) -> Iterator[Any]:
        """Read ``batches`` in order; workers start now."""
        if len(batches) == 0:
            return iter(())
        self._order.batches, self._order.epoch = batches, self.epoch
        with _forking():
            return _all(iter(self._loader), len(batches))


class Reading:
    """Batches that a loader will read when this is iterated: workers start then, and see the epoch set until then."""

    def __init__(self, loader: BatchLoader, batches: Sequence[Any]) -> None:
        self._loader, self._batches = loader, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return self._loader.open(self._batches)


def _all(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """The ``count`` batches; what a worker found wrong comes without the worker's traceback."""
    for position in range(count):
        failure: FairseqError | None = None
        try:
            batch = next(batches)
        except FairseqError as error:
            failure = _without_traceback(error)
            if failure is None:
                raise
        except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two while it sends a batch
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            failure = TrainingError(f"a data worker has ended ({error}): too little memory? Lower --num-workers")
        if failure is not None:
            # Outside the handler: the traceback there would keep the loader and its processes alive.
            del batches
            raise failure
        if position == count - 1:
            # Reaching its end makes the loader stop its workers now. Readers count batches and never ask for one more;
            # workers still alive when those of the next epoch are forked delay these by seconds.
            next(batches, None)
        yield batch


def _without_traceback(error: FairseqError) -> FairseqError | None:
    """The error as the worker raised it, or None when it was raised in this process."""
    message = str(error)
    if "Original Traceback" not in message:
        return None
    # torch's frame of the re-raise refers to its own exception: a cycle that would keep loader and workers alive.
    error.__traceback__ = None
    last_line = message.strip().rsplit("\n", 1)[-1]
    return type(error)(last_line.split(": ", 1)[-1])


_END = object()
_WARM_UP_SECONDS = 5 * 60
_WARNING_EVERY_SECONDS = 15 * 60
_POLL_SECONDS = 0.1
_JOIN_SECONDS = 5.0


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fill(source: Iterator[Any], limit: int, out: queue.Queue[Any], stop: threading.Event) -> None:
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
        for element in itertools.islice(source, limit):
            if not put(element):
                return
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
