"""Does memory grow from epoch to epoch? The data pipeline of `fairseq-train`, and whole trainings, over 50 epochs.

    python benchmarks/memory.py --json memory.json --picture memory.png      about an hour on two cores
    python benchmarks/memory.py --quick                                      seconds: does it run?

`data`: a data set of 200,000 sentences is read, masked, shuffled and collated in every epoch, by the process itself and by two
workers, from one directory and from two that take turns (`a:b`), without computing anything. `training`: a tiny model is
trained on a small part of it. oneDNN keeps a kernel for every shape of a product that it has met, up to 1,024, and the number
of tokens to predict is another one in every batch: training is measured with those caches and, for what else may grow,
without (`kernels not kept`).

Once in an epoch the memory of all processes is read from the system (Linux only; what they share counts once): their own, and
the mapped files of the data set. Growth is told per epoch, as the slope of a line through the second half of the epochs: in
the first one libraries load, and the heap finds its size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import synthetic

WORKER = Path(__file__).resolve().parent / "workers" / "memory_train.py"
MIB = 1 << 20
LINE = 24  # tokens in a sentence
FORGETFUL = "training, kernels not kept"
NO_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "1"}  # the library's, and torch's own for it


def shards(options: argparse.Namespace, sentences: int, count: int) -> str:
    """``count`` directories with ``sentences`` altogether, as they are given to the command."""
    names = []
    for number in range(count):
        size = sentences // count
        home = options.cache / "data" / common.digest("memory", size, number)
        synthetic.write_data_bin(home, 10000, size * LINE, line=LINE, seed=number)
        names.append(str(home))
    return ":".join(names)


def run(what: str, count: int, workers: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The samples of one process, an epoch each."""
    data = shards(options, options.sentences if what == "data" else min(options.sentences, 2000), count)
    words = f"""{data} --cpu --task masked_lm --criterion masked_lm --arch roberta --sample-break-mode eos
        --tokens-per-sample 64 --max-positions 64 --max-tokens 8192 --encoder-layers 1 --encoder-embed-dim 32
        --encoder-ffn-embed-dim 64 --encoder-attention-heads 2 --optimizer adam --lr 0.001
        --max-epoch {options.epochs} --num-workers {workers} --disable-validation --no-save --log-format none"""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        kind = "data" if what == "data" else "model"
        caches = NO_CACHES if what == FORGETFUL else {}
        env = common.environment(options.threads, {"PYTHONPATH": str(common.REPOSITORY), **caches})
        common.run_measured([sys.executable, WORKER, report, kind, *words.split()], env=env, cwd=Path(scratch))
        samples: list[dict[str, Any]] = json.loads(report.read_text())
    return samples


def totals(samples: list[dict[str, Any]], kind: str) -> list[float]:
    """MiB of all processes by epoch."""
    return [sum(one[kind] for one in (sample["parent"], *sample["workers"])) / MIB for sample in samples]


def slope(values: list[float]) -> float:
    """MiB per epoch, in the second half."""
    settled = values[len(values) // 2 :]
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])


def row(name: str, samples: list[dict[str, Any]]) -> dict[str, object]:
    own, mapped = totals(samples, "anonymous"), totals(samples, "file")
    middle = len(own) // 2
    return {
        "what": name,
        "first epoch MiB": own[0],
        f"epoch {middle + 1} MiB": own[middle],
        "last epoch MiB": own[-1],
        "growth KiB an epoch": 1024 * slope(own),
        "mapped files, last epoch MiB": mapped[-1],
        "growth of mapped files KiB an epoch": 1024 * slope(mapped),
    }


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, samples in results.items():
        values = totals(samples, "anonymous")
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("memory of all processes, MiB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = common.benchmark_parser("Memory from epoch to epoch.", rounds=1)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--sentences", type=int, default=200_000)
    parser.add_argument("--picture", type=Path, help="also draw the curves into this PNG")
    parser.add_argument("--quick", action="store_true", help="a few epochs of little data: only to see that it runs")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    if options.quick:
        options.epochs, options.sentences = 4, 4000
    return options


def main() -> None:
    options = parse()
    print(f"# {common.machine()}, {options.threads} threads")
    jobs = {
        f"{what}, {count} shard{'s' * (count > 1)}, {workers} workers": partial(run, what, count, workers, options)
        for what, count in (("data", 1), ("data", 2), ("training", 2), (FORGETFUL, 2))
        for workers in (0, 2)
    }
    results: dict[str, list[dict[str, Any]]] = {}
    for name, job in jobs.items():
        print(f"# {name}", file=sys.stderr, flush=True)
        results[name] = job()
        # After every case: a long run that is interrupted keeps what it has.
        rows = [row(known, samples) for known, samples in results.items()]
        common.write_json(options.json, {"epochs": options.epochs, "rows": rows, "samples": results})
        if options.picture:
            draw(results, options.picture)
    common.print_table(rows, f"Memory over {options.epochs} epochs, {options.sentences:,} sentences")


if __name__ == "__main__":
    main()
