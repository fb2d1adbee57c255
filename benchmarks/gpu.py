"""Everything that has to be known about a GPU in a few minutes: does it run, is it right, does it wait, is it fast.

    python benchmarks/gpu.py --seconds 420 --json gpu.json [--wheels DIRECTORY]
    python benchmarks/gpu.py --dry-run            # every step at tiny sizes on the CPU, figures mean nothing
    python benchmarks/gpu.py --picture gpu.json   # draw what a run has found into gpu.png

Works without a network, with whatever torch is there; `--wheels` names a directory of wheels that are missing there
(`make gpu-wheels` fetches them). Steps: machine, operators, waits, attention, other mixers, training, and which goals are met. JSON is
written after every case; what fails is a line in it, and what would not be done in time is skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: The steps, and what part of the time that is left when one begins it may take.
STEPS = {"machine": 0.4, "operators": 0.35, "waits": 0.25, "attention": 0.45, "mixers": 0.3, "training": 1.0}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        if args.wheels:
            unpack(args.wheels, Path(scratch) / "wheels")
        use(HERE, HERE.parent)
        if args.picture:
            from gpu_steps.picture import draw

            print(draw(args.picture))
        else:
            prepare(args)
            Run(args, scratch).run()


def prepare(args: argparse.Namespace) -> None:
    """What must be there before torch and Triton are imported."""
    missing = [name for name in ("hydra", "omegaconf", "antlr4") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing here: {', '.join(missing)}; make gpu-wheels elsewhere, then --wheels DIRECTORY")
    if args.dry_run:
        os.environ.update(CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1", TORCHDYNAMO_DISABLE="1")
    # Asking whether there is a device must not start it here: a worker is a fork of this process.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=420, help="time that all steps have together (420)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where figures go (gpu.json)")
    parser.add_argument("--wheels", type=Path, help="directory with wheels of missing packages, used where they lie")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), help="some of the steps")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument(
        "--picture", type=Path, metavar="JSON", help="draw the figures of this file; nothing is measured"
    )
    return parser.parse_args(argv)


def use(*directories: Path) -> None:
    """Let this process and those that it starts import from ``directories``."""
    words = [str(directory) for directory in directories]
    sys.path[:0] = [word for word in words if word not in sys.path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*words, *filter(None, [os.environ.get("PYTHONPATH")])])


def unpack(wheels: Path, target: Path) -> None:
    """Make the packages of ``wheels`` importable from ``target``, without pip. What is installed comes first."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"no wheels in {wheels}: make gpu-wheels writes them")
    for file in files:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(target)])


class Run:
    """One run of all steps: the clock, the figures, the file."""

    def __init__(self, args: argparse.Namespace, scratch: str) -> None:
        from gpu_steps.running import Clock
        from gpu_steps.setting import Setting

        self.args = args
        self.found: dict[str, dict[str, Any]] = {step: {} for step in args.only}
        self.setting = Setting("cpu" if args.dry_run else "cuda", scratch, self.found)
        self.clock = Clock(time.monotonic() + args.seconds)
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.method = "fork"

    def run(self) -> None:
        from gpu_steps.running import Clock, run_step

        self._find_device()
        for step in self.args.only:
            try:
                clock = Clock(time.monotonic() + STEPS[step] * self.clock.left())
                run_step(step, self.setting, clock, self.method, self.report)
            except Exception as error:  # for example a name that a step imports is gone
                self.report(step, "all", {"status": "error", "why": f"{type(error).__name__}: {error}"})
        self.write()
        for row in self.goals():
            print(f"{row['status']:>12}: {row['goal']}: {figure(row['found'])}, wanted {row['wanted']}")
        print(self.args.json)

    def _find_device(self) -> None:
        """Try a worker; one that was forked cannot use a device that something has used before."""
        from gpu_steps.running import Worker

        if self.setting.tiny:
            return
        for method in ("fork", "spawn"):
            self.method = method
            worker = Worker(method, "machine", self.setting)
            row, fit = worker.run(0, 90)
            worker.stop(fit)
            if row["status"] == "ok":
                return
        raise SystemExit(f"no CUDA device can be used ({row.get('why')}); --dry-run walks all steps on the CPU")

    def report(self, step: str, case: str, row: dict[str, Any]) -> None:
        self.found[step][case] = row
        facts = ", ".join(f"{key} {figure(value)}" for key, value in row.items() if key not in ("status", "seconds"))
        print(f"[{max(self.clock.left(), 0):3.0f} s left] {step}: {case}: {row['status']}: {facts}"[:240], flush=True)
        self.write()

    def goals(self) -> list[dict[str, Any]]:
        from gpu_steps.goals import goals

        return goals(self.found)

    def write(self) -> None:
        """The whole file, at once."""
        rows = [row for step in self.found.values() for row in step.values()]
        results = {
            "started": self.started,
            "dry_run": self.setting.tiny,
            "seconds": self.args.seconds,
            "left": round(self.clock.left(), 1),
            "counts": dict(Counter(row["status"] for row in rows)),
            "goals": self.goals(),
            "steps": self.found,
        }
        target: Path = self.args.json
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(target.name + ".part")
        half.write_text(json.dumps(results, indent=1) + "\n")
        half.replace(target)


def figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
