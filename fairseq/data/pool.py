"""A function of many items on several processes, in their order; whatever ends a process, nobody waits for ever.

Each worker has a pipe of its own. One that is killed in the middle of an answer closes it, so that its end is noticed at
once. In a queue that all workers share (`concurrent.futures`), the parent would wait for the rest of that answer.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from fairseq.ending import when_parent_ends
from fairseq.errors import FairseqError, WorkerError

T = TypeVar("T")
R = TypeVar("R")

_SMALL = 4096  # bytes of an item that always fit into a pipe: a second one may wait there while the first is worked on
_AHEAD = 4  # items a worker that may be done or on their way before the first of them is taken


def map_in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """``function`` of each item, in their order, on ``workers`` processes (one or none: in this one).

    Forked workers start at once with ``function`` and all that the parent has loaded; only items and results are
    pickled. Few items are on their way at a time: there may be endlessly many. What ``function`` raises is raised here,
    and WorkerError when a worker is killed.
    """
    if isinstance(items, Sized):
        workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    team: list[_Worker] = []
    try:
        team += (_Worker(context, function) for _ in range(workers))
        yield from _answers(team, items)
    finally:
        for worker in team:
            worker.end()


def _answers(team: list[_Worker], items: Iterable[Any]) -> Iterator[Any]:
    todo = (pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items)
    given, taken = 0, 0  # items handed out, answers handed on
    done: dict[int, Any] = {}
    item = next(todo, None)
    while item is not None or given > taken:
        while item is not None and given - taken < _AHEAD * len(team):
            worker = min(team, key=lambda worker: len(worker.numbers))
            if len(worker.numbers) >= (2 if len(item) <= _SMALL else 1):
                break
            worker.give(given, item)
            given += 1
            item = next(todo, None)
        if taken in done:
            yield done.pop(taken)
            taken += 1
            continue
        busy = {worker.pipe: worker for worker in team if worker.numbers}
        for pipe in wait(list(busy)):
            number, answer = busy[pipe].take()  # type: ignore[index]
            done[number] = answer


class _Worker:
    """A worker as its parent sees it; ``numbers`` are those of the items that it has."""

    def __init__(self, context: Any, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.numbers: list[int] = []
        self._process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self._process.start()
        theirs.close()  # now the worker alone has it: it closes when the worker ends

    def give(self, number: int, item: bytes) -> None:
        self.numbers.append(number)
        try:
            self.pipe.send_bytes(item)
        except OSError:
            raise self._ended() from None

    def take(self) -> tuple[int, Any]:
        """The number of an item and the answer. Raises what the worker raised."""
        try:
            answer, error, origin = self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if error is None:
            return self.numbers.pop(0), answer
        raise error from (None if isinstance(error, FairseqError) else WorkerError(f"in a worker process:\n{origin}"))

    def _ended(self) -> WorkerError:
        self._process.join(5)
        status = self._process.exitcode
        if status is None or status >= 0:
            return WorkerError(f"a worker process has ended with status {status} before its work was done")
        name = signal.Signals(-status).name
        cause = " (too little memory?); run again, perhaps with fewer --workers" if name == "SIGKILL" else ""
        return WorkerError(f"a worker process was ended by {name}{cause}")

    def end(self) -> None:
        self._process.kill()  # it has nothing to lose
        self._process.join()
        self.pipe.close()


def _work(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """In a worker. Signals that a whole group of processes gets are for the parent, which ends its workers."""
    for name, handler in (("SIGINT", signal.SIG_IGN), ("SIGHUP", signal.SIG_IGN), ("SIGTERM", signal.SIG_DFL)):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)
    when_parent_ends(lambda: os._exit(1))
    while True:
        try:
            item = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            pipe.send((function(item), None, ""))
        except BrokenPipeError:
            return
        except Exception as error:
            origin = traceback.format_exc()
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send((None, error, origin))
