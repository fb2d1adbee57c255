"""A process that does not go on ends the run in bounded time, and is named.

Every process has a thread that tells the others, through the store where they met, that it is alive, at which update and in
which line. Whoever has waited too long looks up who keeps it waiting: one that tells nothing any more, one that is behind,
or one that is busy with something else than waiting.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from fairseq.distributed import group

MOST = 10.0  # seconds between two signs of life
WAITING = ("torch/distributed/", "torch/autograd/graph.py")


class Sign(NamedTuple):
    """A sign of life: how many there were before, the update that is made, in which line, and whether it waits for others."""

    beats: int
    update: int
    line: str
    waits: bool


class _Progress:
    update = 0
    since: float | None = None


def mark(update: int) -> None:
    """This process begins ``update`` (or evaluates a batch after it)."""
    _Progress.update, _Progress.since = update, time.monotonic()


@contextmanager
def watched(limit: float) -> Iterator[None]:
    """From the first `mark` on, end the processes of the run when one of them makes none for ``limit`` seconds."""
    from torch.distributed import distributed_c10d

    _Progress.since, stop = None, threading.Event()
    store = distributed_c10d._get_default_store()
    thread = threading.Thread(
        target=_watch, args=(store, limit, threading.current_thread().ident, stop), name="watch", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(MOST)


def _watch(store: Any, limit: float, main: int, stop: threading.Event) -> None:
    rank, size, every = group.get_global_rank(), group.get_global_world_size(), min(limit / 4, MOST)
    count = 0
    while not stop.wait(every):
        count += 1
        try:
            store.set(f"sign/{rank}", json.dumps(_sign(count, main)))
        except RuntimeError:
            return  # the others have ended: the communication library says so
        if _Progress.since is None or time.monotonic() - _Progress.since < limit:
            continue
        reader = _Reader(store, size, 2 * every)
        reader.start()
        reader.join(4 * every + MOST)
        if stop.is_set():
            return
        _end(rank, size, reader.first, reader.second, limit)


class _Reader(threading.Thread):
    """Reads the signs of all processes twice; a thread, because the process that keeps them may be the one to blame."""

    def __init__(self, store: Any, size: int, pause: float) -> None:
        super().__init__(daemon=True)
        self._store, self._size, self._pause = store, size, pause
        self.first: dict[int, Sign] | None = None
        self.second: dict[int, Sign] | None = None

    def run(self) -> None:
        self.first = self._read()
        time.sleep(self._pause)
        own = self.first.get(group.get_global_rank())
        if own is not None:  # this process's thread waits for this one
            self._store.set(f"sign/{group.get_global_rank()}", json.dumps(own._replace(beats=own.beats + 1)))
        self.second = self._read()

    def _read(self) -> dict[int, Sign]:
        names = {rank: f"sign/{rank}" for rank in range(self._size)}
        return {
            rank: Sign(*json.loads(self._store.get(name))) for rank, name in names.items() if self._store.check([name])
        }


def _sign(count: int, thread: int) -> Sign:
    frame: FrameType | None = sys._current_frames().get(thread)
    if frame is None:
        return Sign(count, _Progress.update, "", False)
    name = frame.f_code.co_filename
    return Sign(
        count,
        _Progress.update,
        f"{frame.f_code.co_name}, {name}:{frame.f_lineno}",
        any(part in name for part in WAITING),
    )


def _end(
    rank: int, size: int, first: Mapping[int, Sign] | None, second: Mapping[int, Sign] | None, limit: float
) -> None:
    """Say who does not go on, once, and end this process: nothing can interrupt it where it waits."""
    if first is None or second is None:
        guilty, answers = f"process 0 of {size} does not answer", [rank]
    else:
        guilty, answers = blame(size, first, second)
    if rank == min(answers) or first is None:
        print(f"fairseq-train: error: no progress for {limit:g} seconds: {guilty}", file=sys.stderr, flush=True)
    os._exit(1)


def blame(size: int, first: Mapping[int, Sign], second: Mapping[int, Sign]) -> tuple[str, list[int]]:
    """Who keeps the others waiting, from two signs of each process, and which processes are alive."""
    alive = [rank for rank in second if rank not in first or second[rank].beats > first[rank].beats]
    silent = [rank for rank in range(size) if rank not in alive]
    if silent:
        return " and ".join(f"process {rank} of {size} does not answer" for rank in silent), alive
    behind = min(sign.update for sign in second.values())
    late = (
        [rank for rank in alive if second[rank].update == behind]
        if len({s.update for s in second.values()}) > 1
        else alive
    )
    busy = [rank for rank in late if not second[rank].waits] or late
    return " and ".join(
        f"process {rank} of {size} is at update {behind} in {second[rank].line}" for rank in busy
    ), alive
