"""The start of every command that runs a model: how this process gets memory, and how many threads it uses.

Memory: training frees and takes the same hundreds of megabytes at every update. By default glibc gives large blocks
back to the system at once, so that each update faults (and zeroes) all of its pages again. Here freed memory stays
with the process, and the heap is set up for huge pages beforehand, where the system leaves that choice to programs.
The process holds its peak until it ends, and the peak itself is a little higher (freed blocks of other sizes stay in
between). Only glibc knows these settings; elsewhere, and with ``FAIRSEQ_MALLOC=default`` or settings of the user's
own (``MALLOC_...``, ``GLIBC_TUNABLES``, ``LD_PRELOAD``), everything stays as it is. Results never depend on it.

Threads: as many as there are processors that this process may really run on. torch counts the cores of the machine,
or those of the process's affinity. A container's fraction of processor time (cgroup ``cpu.max``) it does not see:
with 64 threads on 4 processors, 60 of them wait at every barrier. ``OMP_NUM_THREADS`` in the environment, if set, is
what the user wants. Data workers have one thread each (torch does that).

Waiting: by default the threads of an operator spin until the last one is done, which is quick where each has a
processor to itself and slow where neighbours take it away. ``FAIRSEQ_WAIT=passive`` lets them sleep; the variables of
the OpenMP libraries (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``, ``KMP_BLOCKTIME``), if set, are what the user wants.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20
_MOST = 64 << 30  # bytes of address space set up for huge pages
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")

_allocator_state = "the default of the C library"


def describe_allocator() -> str:
    """What this process uses, in a few words."""
    return _allocator_state


def tune_allocator() -> None:
    """Keep freed memory from now on, unless the environment says otherwise; harmless when called again."""
    global _allocator_state
    reason = _left_alone()
    if reason is not None:
        _allocator_state = f"the default of the C library ({reason})"
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(_M_MMAP_MAX, 0) or not libc.mallopt(_M_TRIM_THRESHOLD, -1):
        _allocator_state = "the default of the C library (it refused the settings)"
        return
    if "huge pages" not in _allocator_state:
        _allocator_state = "glibc, freed memory is kept" + (", huge pages" if _prepare_huge_pages(libc) else "")


def _left_alone() -> str | None:
    """Why nothing is to be set, or None."""
    choice = os.environ.get("FAIRSEQ_MALLOC", "tuned")
    if choice == "default":
        return "FAIRSEQ_MALLOC=default"
    if platform.libc_ver()[0] != "glibc":
        return "not glibc"
    if "malloc" in os.environ.get("GLIBC_TUNABLES", "") or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return "set by GLIBC_TUNABLES or LD_PRELOAD"
    own = [name for name in os.environ if name.startswith("MALLOC_")]
    return f"set by {own[0]}" if own else None


def _prepare_huge_pages(libc: Any) -> bool:
    """Extend the heap once, by address space that takes no memory before it is used, and advise huge pages for it.

    Memory that the heap gets later could not be advised: the advice belongs to a range of addresses.
    """
    size = _address_space()
    if size == 0:
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:
        return False
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    end = (block + size) // _HUGE_PAGE * _HUGE_PAGE
    advised = libc.madvise(start, end - start, _MADV_HUGEPAGE) == 0
    libc.free(block)  # stays in the heap, because freed memory is kept
    return advised


def _address_space() -> int:
    """Bytes to set up: half of the machine's memory, 0 where huge pages or unused address space are not to be had."""
    try:
        if "[madvise]" not in _THP.read_text() or _OVERCOMMIT.read_text().strip() == "2":
            return 0  # always: they come by themselves; strict accounting: unused memory counts as used
    except OSError:
        return 0
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory // 2, _MOST)


_CGROUPS = Path("/sys/fs/cgroup")


_OURS = "FAIRSEQ_THREADS"


def limit_threads() -> None:
    """Before torch is loaded (later works too): no more threads than processors that this process may use.

    The processes of a run on one machine (``LOCAL_WORLD_SIZE``) share them.
    """
    chosen = os.environ.get("OMP_NUM_THREADS")
    if chosen is not None and chosen != os.environ.get(_OURS):  # nor by the one that started this process
        return
    together = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = max(1, processors() // (int(together) if together.isdecimal() and together != "0" else 1))
    if share >= affinity():
        return
    os.environ["OMP_NUM_THREADS"] = os.environ[_OURS] = str(share)  # for the OpenMP and MKL that torch will load
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(share)


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def choose_waiting() -> None:
    """Before torch is loaded (its OpenMP reads this once): let waiting threads sleep, where that was asked for."""
    if os.environ.get("FAIRSEQ_WAIT") == "passive" and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def describe_waiting() -> str:
    """How threads wait, in a few words."""
    chosen = [f"{name}={os.environ[name]}" for name in _WAITING if name in os.environ]
    return ", ".join(chosen) or "as OpenMP does by default"


def affinity() -> int:
    """Processors that the scheduler may put this process on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processors() -> int:
    """Processors that this process may use at a time."""
    return min(affinity(), quota() or affinity())


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


def prepare_to_compute() -> None:
    """Set up memory and threads of this process; best called before torch is loaded."""
    tune_allocator()
    limit_threads()
    choose_waiting()
