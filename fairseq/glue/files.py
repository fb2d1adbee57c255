"""Small files of results, and the machine they are made on.

Files appear at once, so that a kill at any moment leaves a whole one or none. `Machine` says how many runs fit on
this machine at a time, and the share of it that each gets.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows: there, nobody watches over two commands in one directory
    fcntl = None  # type: ignore[assignment]


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that identify a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


@contextmanager
def claimed(directory: Path, patience: float = 10.0) -> Iterator[int]:
    """Hold ``directory`` for this process; yields a descriptor that children inherit, which keeps it held until they end.

    Raises ConfigError when another process still holds it after ``patience`` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + patience
        while fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"another fairseq-glue works in {directory}; wait for it, or choose another --out"
                    ) from None
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


_BYTES_A_PARAMETER = 24  # weights, gradients, two moments, and a checkpoint while it is written
_BYTES_A_RUN = 1_500_000_000  # the process itself and the activations of a small batch


@dataclass(frozen=True)
class Machine:
    """``jobs`` runs at a time with ``threads`` each; ``devices`` are the GPUs they take turns on."""

    jobs: int
    threads: int
    devices: tuple[str, ...] = ()

    def environment(self, slot: int) -> dict[str, str]:
        """Variables for the run in place ``slot`` (0 ... jobs - 1)."""
        found = {}
        if "OMP_NUM_THREADS" not in os.environ:
            found["OMP_NUM_THREADS"] = found["MKL_NUM_THREADS"] = str(self.threads)
        if self.devices:
            found["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return found


def plan_machine(jobs: int | None, cores: int, parameters: int, cpu: bool = False) -> Machine:
    """Room for ``jobs`` runs; by default one a GPU, and without GPUs as many as there are ``cores`` and memory for.

    ``OMP_NUM_THREADS`` in the environment, if set, is what the user wants.
    """
    devices = () if cpu else _devices()
    if jobs is None:
        jobs = len(devices) or max(1, min(cores, _memory() // (_BYTES_A_RUN + _BYTES_A_PARAMETER * parameters)))
    given = os.environ.get("OMP_NUM_THREADS", "")
    return Machine(jobs, int(given) if given.isdigit() else max(1, cores // jobs), devices)


def _devices() -> tuple[str, ...]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    return tuple(names[: torch.cuda.device_count()])


def _memory() -> int:
    """Bytes that are free for programs."""
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            for line in handle:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
