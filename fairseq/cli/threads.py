"""How many threads an operator may use: as many as there are processors that this process may really run on.

torch counts the cores of the machine, or those of the process's affinity. A container's share of processor time
(cgroup ``cpu.max``) it does not see: with 64 threads on a share of 4 processors, 60 of them wait at every barrier.
``OMP_NUM_THREADS`` in the environment, if set, is what the user wants. Data workers have one thread each (torch does that).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def limit() -> None:
    """Before torch is loaded (later works too): no more threads than processors that this process may use."""
    share = quota()
    if share is None or "OMP_NUM_THREADS" in os.environ or share >= affinity():
        return
    os.environ["OMP_NUM_THREADS"] = str(share)  # for the OpenMP and MKL that torch will load
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(share)


def affinity() -> int:
    """Processors that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Processors that the control groups of this process grant together, rounded up; None: no limit."""
    shares = list(_shares(root, own))
    return max(1, math.ceil(min(shares))) if shares else None


def _shares(root: Path, own: Path) -> Iterator[float]:
    """The limit of every group this process is in, its parents' included."""
    for group in _groups(root, own):
        try:
            allowed, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if allowed != "max":
            yield int(allowed) / int(period)
    try:  # version 1 of the interface
        allowed, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except OSError:
        return
    if int(allowed) > 0:
        yield int(allowed) / int(period)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    yield root
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, path = line.split(":", 2)
        if number == "0":
            group = root / path.strip("/")
            yield from [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
