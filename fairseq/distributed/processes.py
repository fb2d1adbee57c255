"""The processes of a run on one machine, started and watched by the one that was called.

They end together: when one fails, the others, which wait for it, are given a few seconds and then killed, and the error
of the first one is raised here. When this process is killed, they save and end as they would on SIGTERM. Signals are
handed on to all of them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import Any

from fairseq import errors
from fairseq.dataclass.user_module import import_user_module
from fairseq.distributed.placement import Placement, run_rank
from fairseq.ending import ENDING, handling, when_parent_ends
from fairseq.errors import FairseqError, LostContactError, TrainingError

GRACE = 10.0  # seconds
Process = Any  # multiprocessing.Process of the spawn context


def run_processes(cfg: Any, placement: Placement, main: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """Start ``placement.start`` processes that run ``main(cfg, **kwargs)``; returns what the first one returns.

    Raises the error of the process that failed first, or SystemExit with the status that all of them ended with.
    """
    context = multiprocessing.get_context("spawn")
    work = pickle.dumps((cfg, main, dict(kwargs)))
    processes: list[Process] = []
    reports: list[Connection] = []
    with _signals_to(processes):
        for place in range(placement.start):
            ours, theirs = context.Pipe(duplex=False)
            own = Placement(placement.size, placement.address, placement.rank + place, place)
            process = context.Process(target=_work, args=(theirs, cfg.common.user_dir, work, own, placement.start))
            process.start()
            theirs.close()
            processes.append(process)
            reports.append(ours)
        try:
            first = _wait(processes)
        except BaseException:  # Ctrl-C: they had it too
            _end(processes)
            raise
        return _outcome(placement, processes, [_received(report) for report in reports], first)


def _signals_to(processes: Sequence[Process]) -> contextlib.AbstractContextManager[None]:
    """Hand on signals to ``processes`` instead of ending."""

    def forward(number: int, frame: object) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    return handling(dict.fromkeys(ENDING, forward))


def _wait(processes: Sequence[Process]) -> int | None:
    """Until all have ended; returns the place of the first one that failed (None: none did)."""
    first: int | None = None
    deadline: float | None = None
    running = dict(enumerate(processes))
    while running:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        wait([process.sentinel for process in running.values()], left)
        for place, process in list(running.items()):
            if process.exitcode is None:
                continue
            del running[place]
            if process.exitcode != 0 and first is None:
                first, deadline = place, time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            for process in running.values():
                process.kill()
            deadline = None
    return first


def _end(processes: Sequence[Process]) -> None:
    end = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.exitcode is None:
            process.kill()


def _received(report: Connection) -> tuple[Any, ...]:
    try:
        return tuple(pickle.loads(report.recv_bytes())) if report.poll() else ()
    except EOFError:
        return ()
    finally:
        report.close()


def _outcome(
    placement: Placement, processes: Sequence[Process], reports: Sequence[tuple[Any, ...]], first: int | None
) -> Any:
    """The result of the first process, or the error to raise: a cause before those who lost contact because of it."""
    if first is None:
        return reports[0][1] if reports[0] else None
    status = processes[first].exitcode
    failed = [place for place, process in enumerate(processes) if process.exitcode]
    told = [place for place in failed if reports[place] and reports[place][1] != LostContactError.__name__]
    if reports[first] and first not in told and told:
        first = told[0]
    name = f"process {placement.rank + first} of {placement.size}"
    if reports[first]:
        _, kind, message = reports[first]
        raise getattr(errors, kind)(f"{name}: {message}")
    if status < 0:
        died = next((place for place in failed if processes[place].exitcode < 0), first)
        number = -processes[died].exitcode
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        raise TrainingError(
            f"process {placement.rank + died} of {placement.size} was ended by {signal.Signals(number).name}{hint}"
        )
    if status == 1:
        raise TrainingError(f"{name} failed; what it said is above")
    raise SystemExit(status)


def _work(report: Connection, user_dir: str | None, work: bytes, placement: Placement, here: int) -> None:
    """In a process that was started: its part of the run. ``work`` may need the plugins in ``user_dir`` to be read."""
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))  # it saves and ends
    os.environ.update(RANK=str(placement.rank), LOCAL_RANK=str(placement.device), WORLD_SIZE=str(placement.size))
    os.environ["LOCAL_WORLD_SIZE"] = str(here)
    try:
        import_user_module(SimpleNamespace(user_dir=user_dir))
        cfg, main, kwargs = pickle.loads(work)
        report.send_bytes(pickle.dumps(("done", run_rank(cfg, placement, main, kwargs))))
    except FairseqError as error:
        known = next(kind for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        report.send_bytes(pickle.dumps(("failed", known.__name__, str(error))))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
