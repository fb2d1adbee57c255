"""Fine-tuning and inference with padding computed, left out, and avoided by batches of similar length.

    python benchmarks/finetune.py                         # three kinds of sentences, training and inference
    python benchmarks/finetune.py --data glue/MRPC-bin --layers 12 --width 768 --dtype bfloat16

The four contestants see the same sentences: in random batches or in batches grouped by length, each with the encoder on
all positions or on non-padding tokens only. A process of its own makes one pass over the sentences with complete updates
(forward, backward, Adam) or with forward passes. Lengths are made like those of GLUE's tasks (log-normal), or taken
from a data directory of a sentence task. The floor is the fraction of non-padding tokens: no form can gain more than its inverse
on linear maps (attention, which grows with the square, can).
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    REPOSITORY,
    benchmark_parser,
    environment,
    interleave,
    machine,
    median,
    print_table,
    run_measured,
    write_json,
)

WORKER = Path(__file__).parent / "workers" / "finetune_steps.py"
# Median length, spread of its logarithm, shortest, longest; tokens with <s> and </s>.
KINDS = {
    "sentences (CoLA, SST-2)": (12, 0.55, 4, 64),
    "pairs (MRPC, STS-B, MNLI)": (36, 0.45, 8, 128),
    "long pairs (RTE, QNLI)": (60, 0.55, 16, 256),
}
CONTESTANTS = {
    "padded": {"packed": False, "grouped": False},
    "grouped": {"packed": False, "grouped": True},
    "packed": {"packed": True, "grouped": False},
    "grouped, packed": {"packed": True, "grouped": True},
}


def made_lengths(kind: str, count: int) -> list[int]:
    middle, spread, least, most = KINDS[kind]
    found = np.random.RandomState(1).lognormal(np.log(middle), spread, count)
    return np.clip(found, least, most).astype(int).tolist()


def lengths_of(data: Path, count: int, longest: int) -> list[int]:
    """Lengths of the first ``count`` training examples of a binarized sentence task, cut at ``longest``."""
    sys.path.insert(0, str(REPOSITORY))
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    inputs = [MMapIndexedDataset(str(path / "train")).sizes + 1 for path in sorted(data.glob("input[01]"))]
    if not inputs:
        raise SystemExit(f"{data} holds no input0; give the directory that a sentence task reads")
    return np.minimum(sum(np.asarray(sizes, dtype=np.int64) for sizes in inputs)[:count], longest).tolist()


def measure(job: dict[str, Any], threads: int) -> dict[str, float]:
    env = environment(threads, {"PYTHONPATH": str(REPOSITORY)})
    return json.loads(run_measured([sys.executable, WORKER, json.dumps(job)], env=env).stdout.splitlines()[-1])


def rows_of(kind: str, work: str, lengths: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a contestant, in turns; ratios against `padded`."""
    sizes = {name: getattr(args, name) for name in ("layers", "width", "vocabulary", "batch", "dropout", "dtype")}
    job = {"lengths": lengths, "train": work == "training", **sizes}
    found = interleave(
        {name: partial(measure, {**job, **form}, args.threads) for name, form in CONTESTANTS.items()}, args.rounds
    )
    seconds = {name: median([result["seconds"] for result in results]) for name, results in found.items()}
    cpu = {name: median([result["cpu"] for result in results]) for name, results in found.items()}
    return [
        {
            "lengths": kind,
            "work": work,
            "form": name,
            "non-padding tokens": sum(lengths) / results[0]["padded_tokens"],
            "tokens/s": sum(lengths) / seconds[name],
            "sentences/s": len(lengths) / seconds[name],
            "times padded": seconds["padded"] / seconds[name],
            "CPU, times padded": cpu["padded"] / cpu[name],
        }
        for name, results in found.items()
    ]


def parse() -> argparse.Namespace:
    parser = benchmark_parser("Fine-tuning and inference with and without padding.", rounds=3)
    parser.add_argument("--data", type=Path, help="take the lengths from this data directory of a sentence task")
    for name, value in {"layers": 6, "width": 512, "vocabulary": 50265, "batch": 32, "sentences": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--longest", type=int, default=512, help="with --data: longer examples are cut")
    parser.add_argument("--dropout", type=float, default=0.1, help="of activations and of attention alike")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--work", nargs="+", choices=("training", "inference"), default=["training", "inference"])
    parser.add_argument("--kinds", nargs="+", type=int, choices=range(len(KINDS)), default=list(range(len(KINDS))))
    return parser.parse_args()


def main() -> None:
    args = parse()
    print(f"# {machine()}, {args.threads} threads")
    if args.data:
        samples = {str(args.data): lengths_of(args.data, args.sentences, args.longest)}
    else:
        samples = {list(KINDS)[i]: made_lengths(list(KINDS)[i], args.sentences) for i in args.kinds}
    rows = [
        row for kind, lengths in samples.items() for work in args.work for row in rows_of(kind, work, lengths, args)
    ]
    title = f"{args.layers} x {args.width}, {args.sentences} sentences in batches of {args.batch}, {args.dtype}"
    print_table(rows, title)
    write_json(args.json, {"rows": rows, "threads": args.threads, "title": title})


if __name__ == "__main__":
    main()
