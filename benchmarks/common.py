"""What the benchmarks share: peer environments, processes measured from outside, interleaved rounds, tables.

A peer (the original fairseq, Hugging Face Transformers) lives in a virtual environment of its own, made on first
use under a cache directory (`.cache/benchmarks` in the repository, or `--cache`). Every measurement runs in a
process of its own and the contestants take turns (A B C A B C ...), so that a machine whose speed drifts slows all
of them alike; what is quoted is the median and the ratio of medians.

Units: seconds, MiB, tokens per second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CACHE = REPOSITORY / ".cache" / "benchmarks"
ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD")  # with every MALLOC_*: they would tune one side unseen

#: Freed memory stays with the process, large blocks included, on huge pages: what `FAIRSEQ_MALLOC` does from inside.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

Result = TypeVar("Result")


def torch_requirement() -> str:
    """The torch that every peer gets: `TORCH=...` from the environment, else the pin in constraints.txt.

    One version for all, so that a difference between contestants is never a difference between torch builds.
    """
    if os.environ.get("TORCH"):
        return os.environ["TORCH"]
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.strip().startswith("torch=="):
            return line.strip()
    return "torch"


def peer_venv(name: str, requirements: Sequence[str | Sequence[str]], cache: Path | None = None) -> Path:
    """Return the Python of a virtual environment called `name` that holds `requirements`, making it if needed.

    `requirements` is a list of pip steps: a string is one step with one requirement, a list is one step with
    several arguments (pip options allowed). The environment is built again when the list changes.
    Raises SystemExit with pip's last lines when a step fails.
    """
    steps = [[step] if isinstance(step, str) else list(step) for step in requirements]
    home = (cache or DEFAULT_CACHE).resolve() / name
    python = home / "bin" / "python"
    stamp = home / "installed.json"
    wanted = json.dumps({"python": platform.python_version(), "steps": steps})
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"# making the environment of {name} in {home} (once)", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    torch_pin = torch_requirement()
    constraints = home / "constraints.txt"
    constraints.write_text(torch_pin + "\n" if "==" in torch_pin and "/" not in torch_pin else "")
    for step in steps:
        # The constraint matters: with torch installed, a dependency that asks for any torch must not replace it.
        command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *step]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise SystemExit(f"pip could not install {' '.join(step)} for {name}:\n{tail}")
    stamp.write_text(wanted)
    return python


def original_python(cache: Path | None = None) -> Path:
    """Python of the environment with the original, from PyPI's `fairseq-fixed` (0.12.3.1, upstream's last code).

    It is built without isolation, against the torch installed here: an isolated build would fetch whatever torch is
    newest. Its `torchaudio` is left out, because masked language models never import it.
    """
    return peer_venv(
        "original",
        [
            [torch_requirement(), "numpy", "setuptools<81", "wheel", "cython"],
            ["hydra-core==1.3.2", "omegaconf==2.3.0", "cffi", "regex", "sacrebleu>=1.4.12", "tqdm"],
            ["bitarray", "scikit-learn", "packaging", "tensorboardX", "tensorboard"],
            ["--no-build-isolation", "--no-deps", "fairseq-fixed==0.12.3.1"],
        ],
        cache,
    )


def transformers_python(cache: Path | None = None) -> Path:
    """Python of the environment with Hugging Face Transformers (version 5.23.0)."""
    return peer_venv("transformers", [[torch_requirement(), "numpy"], "transformers==5.23.0"], cache)


@dataclass
class Measured:
    """One finished process, as the operating system accounts for it (children that it waited for included)."""

    wall: float
    user: float
    system: float
    peak_mib: float
    stdout: str
    stderr: str

    @property
    def cpu(self) -> float:
        return self.user + self.system


def environment(threads: int | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment with `threads` compute threads and the default allocator; `extra` wins."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k not in ALLOCATOR_VARIABLES}
    if threads is not None:
        env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(threads)
    env.update(PYTHONHASHSEED="0", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1")
    env.update(extra or {})
    return env


def run_measured(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
) -> Measured:
    """Run a command to its end; SystemExit with its last lines when it fails and `check` is set.

    `peak_mib` is the largest single process of the tree.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if check and process.returncode:
        tail = "\n".join((stdout + stderr).strip().splitlines()[-25:])
        raise SystemExit(f"exit code {process.returncode} from: {' '.join(words)}\n{tail}")
    return Measured(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024, stdout, stderr)


def interleave(
    callables: Mapping[str, Callable[[], Result]], repeats: int, warmup: int = 0, verbose: bool = True
) -> dict[str, list[Result]]:
    """Call every contestant in turn, `warmup` + `repeats` rounds; return the results of the counted rounds.

    Odd rounds run in reverse order, so that no contestant always follows the same neighbour.
    """
    results: dict[str, list[Result]] = {name: [] for name in callables}
    for turn in range(warmup + repeats):
        names = list(callables) if turn % 2 == 0 else list(callables)[::-1]
        for name in names:
            if verbose:
                label = "warm-up" if turn < warmup else f"round {turn - warmup + 1}/{repeats}"
                print(f"# {label}: {name}", file=sys.stderr, flush=True)
            result = callables[name]()
            if turn >= warmup:
                results[name].append(result)
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """`min-max` of the values, three significant digits each."""
    return f"{min(values):.3g}-{max(values):.3g}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return "" if value is None else str(value)


def print_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """Print rows (dictionaries; the first one's keys are the columns) as a Markdown table; numbers right-aligned."""
    if not rows:
        return
    columns = list(rows[0])
    text = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in text)) for i, column in enumerate(columns)]
    right = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]

    def render(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, right, strict=True)
        return "| " + " | ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in pairs) + " |"

    if title:
        print(f"\n{title}\n")
    print(render(columns))
    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    print("| " + " | ".join(rule) + " |")
    for line in text:
        print(render(line))
    sys.stdout.flush()


def machine() -> str:
    """One line about the processor, cores and load, printed above every table."""
    model, bf16 = platform.processor() or platform.machine(), "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        model = names[0] if names else model
        bf16 = "yes" if "avx512_bf16" in text or "amx_bf16" in text else "no"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    cores, python = os.cpu_count(), platform.python_version()
    return f"{model}, {cores} cores, bf16 instructions: {bf16}, load {load:.2f}, Python {python}"


def benchmark_parser(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has: --cache, --rounds, --threads, --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where peer environments and data are kept")
    parser.add_argument("--rounds", type=int, default=rounds, help="counted rounds; the median is quoted")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads of every contestant")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def write_json(path: Path | None, payload: Mapping[str, Any]) -> None:
    """Write figures with the machine and the time of day, when a path is given."""
    if path is not None:
        stamped = {"machine": machine(), "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **payload}
        path.write_text(json.dumps(stamped, indent=2) + "\n")


def digest(*parts: object) -> str:
    """Short name for cached data made from these settings."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
