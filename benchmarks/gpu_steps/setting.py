"""What every step is told, and how steps measure.

Units: seconds, milliseconds where a key says ms, MiB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement: a function that gives a row of figures."""

    name: str
    run: Callable[[], Row]
    least: float = 5.0
    """Seconds that it takes at least: with less time left it is skipped."""
    limit: float = 60.0
    """Seconds after which it is given up."""


@dataclass(frozen=True)
class Setting:
    """``scratch`` is a directory for files of the run."""

    device: str
    scratch: str
    found: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Rows of the steps before, by step and case."""

    @property
    def tiny(self) -> bool:
        """A dry run on the CPU: every size is small, and figures mean nothing."""
        return self.device == "cpu"

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def median_seconds(setting: Setting, call: Callable[[], object], budget: float = 0.6, most: int = 30) -> float:
    """The median time of ``call``, of 3 to ``most`` calls that take about ``budget`` seconds together, after two more."""
    for _ in range(2):
        call()
    setting.synchronize()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 3 or (time.perf_counter() < end and len(times) < most):
        times.append(_once(setting, call))
        if setting.tiny:
            break
    return statistics.median(times)


def _once(setting: Setting, call: Callable[[], object]) -> float:
    if setting.device != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end_event.record()
    end_event.synchronize()
    return start_event.elapsed_time(end_event) * 1e-3


def peak_mib(setting: Setting, call: Callable[[], object]) -> float | None:
    """Memory that ``call`` takes beside what is there before it; None on the CPU."""
    if setting.device != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
