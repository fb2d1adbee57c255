"""What faults cost: trainings that are killed and disturbed, files that are damaged or made up. Counted: survived, and lost.

    python benchmarks/faults.py [--kills 200] [--inputs 2000] [--quick] [--json FILE] [--picture FILE]

A fault is survived when the next run of the same command goes on with the sentences, losses and weights of an undisturbed
run, to the last bit; a damaged file when it is read, or refused with one sentence. Everything comes from `tests/faults`, in
processes of its own; a part with a fault that was not survived prints what was wrong. The status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import REPOSITORY, environment, machine, print_table, write_json

Row = dict[str, Any]
PHASES = {
    "startup": "killed while starting",
    "training": "killed between saves",
    "saving": "killed in the first file of a save",
    "renaming": "killed between the files of a save",
    "deleting": "killed while deleting old files",
}
KILLED = -9
OF_DATA = ("data worker killed", "few open files", "data shortened")
TESTS = ("tests/unit/test_preprocess_kills.py", "tests/integration/test_elastic.py")
FEW_KINDS = ("checkpoint", "dict.txt", "data", "yaml")


def run(name: str, words: Sequence[object], total: int = 0, details: Path | None = None) -> tuple[int, str]:
    """Status and output of ``python -m WORDS``; meanwhile the lines in ``details`` are counted."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    env = environment(1, {"PYTHONPATH": path, "FAIRSEQ_MALLOC": "default", "TOKENIZERS_PARALLELISM": "false"})
    command = [sys.executable, "-m", *map(str, words)]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=output, stderr=subprocess.STDOUT)
        shown = time.monotonic()
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                done = len(read_lines(details)) if details is not None else 0
                counted = f"{done} of about {total}, " if total else ""
                print(f"# {name}: {counted}{shown - start:.0f} s", file=sys.stderr, flush=True)
        output.seek(0)
        said = output.read()
    print(f"# {name}: done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if process.returncode:
        print(said[-4000:], file=sys.stderr, flush=True)
    return process.returncode, said


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def row(kind: str, faults: int, survived: int, lost: str) -> Row:
    return {"kind": kind, "faults": faults, "survived": survived, "what was lost": lost}


def updates_lost(faults: Sequence[Row]) -> str:
    """The updates that had to be made again, in words."""
    lost = [fault["lost"] for fault in faults]
    if not any(lost):
        return "nothing"
    most = "1 update" if max(lost) == 1 else f"{max(lost)} updates"
    return f"{most} at most, {sum(lost) / len(lost):.2g} on average"


def row_of(kind: str, faults: Sequence[Row]) -> Row:
    return row(kind, len(faults), sum(not fault["complaints"] for fault in faults), updates_lost(faults))


def kills(count: int, seed: int, folder: Path) -> list[Row]:
    details = folder / "kills"
    run("kills", ["tests.faults.kills", "--count", count, "--seed", seed, "--details", details], count, details)
    return rows_of_kills(read_lines(details))


def rows_of_kills(faults: Sequence[Row]) -> list[Row]:
    """By what the run was doing; then the signals, and the ends of the trainings."""
    killed = [fault for fault in faults if fault["status"] == KILLED]
    told = [fault for fault in faults if fault["kind"].startswith("SIG") and fault["status"] not in (0, KILLED)]
    ends = [fault for fault in faults if fault["kind"] == "the end"]
    rows = [row_of(name, [f for f in killed if f["phase"] == phase]) for phase, name in PHASES.items()]
    rows.append(row_of("SIGTERM, SIGUSR1, SIGHUP", told))
    same = sum(not fault["complaints"] for fault in ends)
    rows.append(row("trainings that were killed, at their end", len(ends), same, "same files to the last bit"))
    return rows


def troubles(folder: Path) -> list[Row]:
    details = folder / "disks"
    run("disks", ["tests.faults.disks", "--details", details], details=details)
    faults = read_lines(details)
    data = [fault for fault in faults if fault["kind"] in OF_DATA]
    return [
        row_of("disk full, broken, read-only, limited or gone", [fault for fault in faults if fault not in data]),
        row_of("data worker killed, data shortened, few open files", data),
    ]


def controls() -> list[Row]:
    status, said = run("mistakes", ["tests.faults.controls"])
    mistakes = {row["without"]: row["found"] for row in map(json.loads, said.splitlines())} if not status else {}
    sound = mistakes.pop("nothing", ["not run"])
    found = 0 if sound else sum(map(bool, mistakes.values()))
    return [row("mistakes put into resuming and saving", len(mistakes), found, "found, as they have to be")]


def damaged(count: int, names: Sequence[str], checked: set[str], folder: Path) -> list[Row]:
    """``count`` good files with damage, in all; those that carry checksums may not be read as something else."""
    each, details = -(-count // len(names)), folder / "fuzz"
    words = ["tests.faults.fuzz", "--count", each, "--details", details, "--kinds", *names]
    run("damaged files", words, each * len(names), details)
    reports = read_lines(details)
    outcomes = Counter(report["outcome"] for report in reports)
    good = sum(outcomes[name] for name in ("sentence", "unchanged", "silent"))
    silent = sum(report["outcome"] == "silent" and report["kind"] in checked for report in reports)
    said = f"{outcomes['sentence']} refused, {good - outcomes['sentence']} read"
    return [row(f"damaged files of {len(names)} kinds", len(reports), good - silent, said)]


def generated(count: int, names: Sequence[str]) -> list[Row]:
    """``count`` files that are made up, in all."""
    _, printed = run("generated files", ["tests.faults.properties", "--count", -(-count // len(names))])
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    read, refused = (sum(report.get(key, 0) for report in found) for key in ("read", "refused"))
    wrong = len(names) - sum("wrong" not in report for report in found)
    said = f"{refused} refused, {read} read"
    return [row(f"generated files of {len(names)} kinds", read + refused + wrong, read + refused, said)]


def others() -> list[Row]:
    """Kills of preprocessing, and of one of two machines under torchrun, which are tests."""
    _, said = run("other kills", ["pytest", "-p", "no:cacheprovider", "-m", "", *TESTS])
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed)\b", said[-300:])}
    passed, failed = counts.get("passed", 0), counts.get("failed", 0)
    name = "tests of killed preprocessing and of a lost machine"
    return [row(name, passed + failed, passed, "updates since the last save")]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Faults and survived ones, a bar each, with what was lost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 0.45 * len(rows) + 1))
    places = range(len(rows))
    axis.barh(places, [max(row["faults"], 0.5) for row in rows], color="tab:red", label="faults")
    axis.barh(places, [max(row["survived"], 0.5) for row in rows], color="tab:blue", label="survived")
    for place, row in enumerate(rows):
        axis.text(
            max(row["faults"], 0.5) * 1.1,
            place,
            f"{row['survived']}/{row['faults']}: {row['what was lost']}",
            va="center",
            fontsize=7,
        )
    axis.set(xscale="log", xlabel="faults", xlim=(0.8, 60 * max(row["faults"] for row in rows)))
    axis.set_yticks(list(places), [row["kind"] for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parts(args: argparse.Namespace, folder: Path) -> list[Callable[[], list[Row]]]:
    """What is run, each in a process of its own."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.faults.kinds import KINDS
    from tests.faults.properties import PROPERTIES

    names = FEW_KINDS if args.quick else tuple(KINDS)
    checked = {name for name in names if KINDS[name].checked}
    half = args.inputs // 2
    found = [
        lambda: kills(args.kills, args.seed, folder),
        lambda: troubles(folder),
        controls,
        lambda: damaged(half, names, checked, folder),
        lambda: generated(half, tuple(PROPERTIES)),
    ]
    return found if args.quick else [*found, others]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills of trainings (%(default)s)")
    parser.add_argument("--inputs", type=int, default=2000, help="damaged and generated files (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few of each, without the slow tests")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--picture", type=Path, help="draw them into this file")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.inputs = 12, 200
    print(machine(), flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as executor:
        waiting = [executor.submit(part) for part in parts(args, Path(folder))]
        rows = [row for part in waiting for row in part.result()]
    print_table(rows, f"Faults, {time.monotonic() - start:.0f} s in all")
    write_json(args.json, {"kills": args.kills, "inputs": args.inputs, "seed": args.seed, "rows": rows})
    if args.picture:
        draw(rows, args.picture)
    return 1 if any(row["survived"] != row["faults"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
