"""How long one waits: `fairseq-train --help`, `import fairseq` and the first update, beside the original.

    python benchmarks/startup.py [--rounds 5]

Whole processes as the operating system accounts for them, in turns; bytecode is cached on both sides by a warm-up round.
"First update" runs `fairseq-train` on a tiny data-bin and counts from the start of the process to the end of the
first update (its processor time is that of the whole command). `import torch` is printed for scale: no fairseq that trains can start faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import synthetic

WORKER = Path(__file__).resolve().parent / "workers" / "fairseq_train.py"
COMMAND = "import sys; sys.argv[0] = 'fairseq-train'; from fairseq_cli.train import cli_main; cli_main()"
FLAGS = """--cpu --task masked_lm --criterion masked_lm --arch roberta --sample-break-mode none --tokens-per-sample 32
    --max-positions 32 --mask-prob 0.15 --batch-size 4 --required-batch-size-multiple 1 --encoder-layers 2
    --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 2 --optimizer adam --lr 0.001
    --max-update 1 --log-format json --num-workers 0 --disable-validation --no-save"""


def measure(task: str, python: Path, ours: bool, options: argparse.Namespace) -> common.Measured:
    """Run one task in a fresh process; for the first update, `wall` ends when the update does."""
    env = common.environment(options.threads)
    env.pop("PYTHONPATH", None)
    if ours:
        env["PYTHONPATH"] = str(common.REPOSITORY)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        commands: dict[str, list[str | Path]] = {
            "--help": [python, "-c", COMMAND, "--help"],
            "import fairseq": [python, "-c", "import fairseq"],
            "import torch": [python, "-c", "import torch"],
            "first update": [
                python,
                WORKER,
                report,
                str(options.data),
                *FLAGS.split(),
                "--save-dir",
                f"{scratch}/checkpoints",
            ],
        }
        start = time.time()
        measured = common.run_measured(commands[task], env=env, cwd=Path(scratch))
        if task == "first update":
            measured.wall = json.loads(report.read_text())["ends"][0] - start
    return measured


def main() -> None:
    options = common.benchmark_parser("Start-up time beside the original.").parse_args()
    options.cache = options.cache.resolve()
    options.data = synthetic.write_data_bin(options.cache / "data" / "startup", vocabulary=1000, train_tokens=8192)
    pythons = {"original": common.original_python(options.cache), "ours": Path(sys.executable)}
    tasks = ["--help", "import fairseq", "first update"]
    jobs = {
        f"{task}|{who}": partial(measure, task, python, who == "ours", options)
        for task in tasks
        for who, python in pythons.items()
    }
    jobs["import torch|ours"] = partial(measure, "import torch", pythons["ours"], True, options)
    print(f"# {common.machine()}, {options.threads} threads")
    results = common.interleave(jobs, options.rounds, warmup=1)
    wall = {name: common.median([run.wall for run in runs]) for name, runs in results.items()}
    cpu = {name: common.median([run.cpu for run in runs]) for name, runs in results.items()}
    rows: list[dict[str, object]] = []
    for task in tasks:
        old, new = f"{task}|original", f"{task}|ours"
        rows.append(
            {
                "what": task,
                "original s": wall[old],
                "ours s": wall[new],
                "ours / original": wall[new] / wall[old],
                "original CPU s": cpu[old],
                "ours CPU s": cpu[new],
                "CPU ours / original": cpu[new] / cpu[old],
            }
        )
    rows.append({"what": "import torch", "ours s": wall["import torch|ours"], "ours CPU s": cpu["import torch|ours"]})
    common.print_table(rows, f"Start-up, medians of {options.rounds} rounds")
    runs = {
        name: [{"wall": run.wall, "cpu": run.cpu, "peak_mib": run.peak_mib} for run in r] for name, r in results.items()
    }
    common.write_json(options.json, {"rows": rows, "runs": runs})


if __name__ == "__main__":
    main()
