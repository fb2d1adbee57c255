"""Runs the cases of a step in a process of their own, against the clock.

A kernel that reads where it may not leaves a CUDA process useless, and one that hangs never gives it back. So cases run in a
worker: what becomes of it concerns one case, and the next one gets a new worker. Workers are forked, which saves importing
torch again, as long as nothing has touched the device before; where that fails they are started afresh.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from fairseq.errors import ConfigError
from gpu_steps.setting import Case, Row, Setting

UNSUPPORTED = (ConfigError, NotImplementedError, ModuleNotFoundError)
Report = Callable[[str, str, Row], None]


def cases_of(step: str, setting: Setting) -> list[Case]:
    """The cases of the module ``gpu_steps.<step>``."""
    return importlib.import_module(f"gpu_steps.{step}").cases(setting)


def attempt(case: Case) -> Row:
    """The row of ``case``: its figures and ``status``, or why there are none."""
    start = time.perf_counter()
    try:
        row = {"status": "ok", **case.run()}
    except torch.OutOfMemoryError as error:
        row = {"status": "out of memory", "why": short(error)}
    except UNSUPPORTED as error:
        row = {"status": "unsupported", "why": short(error)}
    except Exception as error:  # whatever goes wrong here, the other cases are to be measured
        row = {"status": "error", "why": f"{type(error).__name__}: {short(error)}"}
    return {**row, "seconds": round(time.perf_counter() - start, 2)}


def short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def usable(setting: Setting) -> bool:
    """Whether the device still answers; afterwards its cache is empty."""
    if setting.device != "cuda":
        return True
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def work(connection: Connection, step: str, setting: Setting) -> None:
    """The worker: runs the cases whose numbers it gets, until None; answers with the row, and whether it can go on."""
    with contextlib.suppress(OSError):
        os.setsid()
    cases = cases_of(step, setting)
    while (number := connection.recv()) is not None:
        row = attempt(cases[number])
        fit = usable(setting)
        connection.send((row, fit))
        if not fit:
            os._exit(1)
    os._exit(0)  # without the clean-up of what was forked from the parent


class Worker:
    """A process that runs cases of one step."""

    def __init__(self, method: str, step: str, setting: Setting) -> None:
        context: Any = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, step, setting))
        self.process.start()
        theirs.close()

    def run(self, number: int, limit: float) -> tuple[Row, bool]:
        """The row of case ``number``, and whether the worker can go on."""
        try:
            self.connection.send(number)
            if self.connection.poll(limit):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            return {"status": "error", "why": f"the process ended with {self.process.exitcode}"}, False
        return {"status": "timed out", "why": f"given up after {limit:.0f} s"}, False

    def stop(self, fit: bool) -> None:
        if fit:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(5)
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)  # it leads a group: compilers that it started end with it
            self.process.kill()
            self.process.join(10)
        self.connection.close()


@dataclass
class Clock:
    """The time that the whole run has."""

    end: float

    def left(self) -> float:
        return self.end - time.monotonic()


def run_step(step: str, setting: Setting, clock: Clock, method: str, report: Report) -> None:
    """Run the cases of ``step`` one after the other; ``report(step, case, row)`` gets each row as soon as it is there."""
    worker = None
    try:
        for number, case in enumerate(cases_of(step, setting)):
            left = clock.left()
            if left < case.least:
                why = f"it takes at least {case.least:.0f} s, and {max(left, 0):.0f} s are left"
                report(step, case.name, {"status": "skipped", "why": why})
                continue
            worker = worker or Worker(method, step, setting)
            row, fit = worker.run(number, min(case.limit, left))
            report(step, case.name, row)
            if not fit:
                worker.stop(fit)
                worker = None
    finally:
        if worker is not None:
            worker.stop(True)
