"""Damage inputs of every kind and count what the commands make of them.

    python -m tests.faults.fuzz --count 500 --seed 0 [--kinds checkpoint yaml ...] [--details out.jsonl]

sentence: refused with one sentence; unchanged: the answer of the good files; silent: another answer; memory: ended at the
limit of memory; traceback, hang (20 s) and crash (a signal) are faults. The status is 1 when there is one, or a silent
change of files that carry checksums.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.common import ROOT
from tests.faults.kinds import KINDS

OUTCOMES = ("sentence", "unchanged", "silent", "memory", "traceback", "hang", "crash")
FAULTS = ("memory", "traceback", "hang", "crash")
HANG_SECONDS = 20.0
START_SECONDS = 120.0


def attempts(name: str, count: int, seed: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """What happened to the damaged inputs ``first`` ... of the kind ``name``, one after the other."""
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        _prepare(name, good)
        number, stop = first, first + count
        while number < stop:
            for report in _run_child(name, seed, number, stop, good):
                yield report
                number = report["number"] + 1


def _prepare(name: str, good: Path) -> None:
    program = (
        f"from pathlib import Path; from tests.faults.kinds import KINDS; KINDS[{name!r}].prepare(Path({str(good)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cannot make the good files of {name}: {done.stderr[-2000:]}")


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "FAIRSEQ_MALLOC": "default"}


def _run_child(name: str, seed: int, start: int, stop: int, good: Path) -> Iterator[dict[str, Any]]:
    """The reports of one child process, which ends early at an input that hangs or kills it."""
    words = [sys.executable, "-m", "tests.faults.worker", name, *map(str, (seed, start, stop)), str(good)]
    child = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert child.stdout is not None
    current, patience = start - 1, START_SECONDS
    lines = _lines(child)
    try:
        while True:
            line = lines(patience)
            if line is None:
                yield {"number": current, "outcome": "hang", "file": "", "said": f"{patience:g} s"}
                return
            if not line:
                break
            try:
                report = json.loads(line)
            except ValueError:
                continue  # something that a library printed
            current, patience = report["number"], HANG_SECONDS
            if "outcome" in report:
                yield report
        status = child.wait()
        if current < start:
            raise RuntimeError(f"the child for {name} ended with {status} before it began: {_last_words(child)}")
        if status:
            yield {"number": current, "outcome": "crash", "file": "", "said": f"status {status}: {_last_words(child)}"}
    finally:
        child.kill()
        child.wait()


def _last_words(child: subprocess.Popen[bytes]) -> str:
    return child.stderr.read().decode(errors="replace")[-600:] if child.stderr is not None else ""


def _lines(child: subprocess.Popen[bytes]) -> Any:
    """A function that gives the next line of the child's output: empty at its end, None when it takes too long."""
    assert child.stdout is not None
    selector, buffer = selectors.DefaultSelector(), bytearray()
    selector.register(child.stdout, selectors.EVENT_READ)

    def next_line(seconds: float) -> bytes | None:
        assert child.stdout is not None
        while b"\n" not in buffer:
            if not selector.select(seconds):
                return None
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                return b""
            buffer.extend(part)
        line, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        return line

    return next_line


def is_fault(name: str, report: dict[str, Any]) -> bool:
    return report["outcome"] in FAULTS or (report["outcome"] == "silent" and KINDS[name].checked)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="damaged inputs of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first one (%(default)s)")
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS, []], default=list(KINDS), metavar="KIND")
    parser.add_argument("--details", type=Path, help="write every report to this file, a line of JSON each")
    args = parser.parse_args(argv)
    faults = 0
    print(f"{'':<20}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES), flush=True)
    for name in args.kinds:
        counts: Counter[str] = Counter()
        for report in attempts(name, args.count, args.seed, args.first):
            counts[report["outcome"]] += 1
            faults += is_fault(name, report)
            if args.details is not None:
                with args.details.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": name, **report}) + "\n")
        print(f"{name:<20}" + "".join(f"{counts[outcome]:>11}" for outcome in OUTCOMES), flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
