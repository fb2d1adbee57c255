"""A fast feedforward layer beside its dense counterpart of as many neurons, by the number of tokens.

    python benchmarks/fff.py                                   # the table; about 20 minutes on two cores
    python benchmarks/fff.py --tokens 1 2048 --caches cold --json fff.json --picture fff.png

Contestants, all in float32 on the same random inputs, new ones every round: the layer (ours); stock PyTorch's dense linears; our own
dense linears (the best product of this machine); two `F.embedding_bag` calls on the layer's routes, which is what reading
the visited rows costs; the published form, which computes all neurons and masks them. Training is forward and all
gradients; to the bags it adds the time to fill two gradients with zeros. Inputs and tables are cold (256 MiB were written in between)
or warm (the same call just ran).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import benchmark_parser, environment, machine, print_table, run_measured, write_json

WORKER = Path(__file__).parent / "workers" / "fff_layer.py"
NAMES = {"stock": "stock dense", "dense_here": "best dense", "masked": "masked"}


def measure(job: dict[str, Any], threads: int) -> dict[str, float]:
    """Median seconds of a call of each contestant."""
    env = environment(threads, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    return json.loads(run_measured([sys.executable, WORKER, json.dumps(job)], env=env).stdout.splitlines()[-1])


def layer_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each mode, number of threads, state of the caches and number of tokens."""
    rows = []
    for training in (False, True):
        for threads in sorted({1, args.threads}):
            for cache in args.caches:
                for tokens in args.tokens:
                    print(
                        f"# {'training' if training else 'inference'}, {threads} threads, {cache}, {tokens} tokens",
                        file=sys.stderr,
                    )
                    job = {"tokens": tokens, "training": training, "cache": cache, "rounds": args.rounds}
                    times = measure({**job, "width": args.width, "depth": args.depth}, threads)
                    rows.append(row_of(times, training, threads, cache, tokens))
    return rows


def row_of(times: dict[str, float], training: bool, threads: int, cache: str, tokens: int) -> dict[str, Any]:
    ours, floor = times["ours"], times["bags"] + times.get("zeros", 0.0)
    row = {
        "mode": "training" if training else "inference",
        "threads": threads,
        "cache": cache,
        "tokens": tokens,
        "ms": ours * 1e3,
        "of the bags": ours / floor,
        "above dispatch, us": None if training else (ours - times["dispatch"]) * 1e6,
    }
    return row | {f"times {label}": times[name] / ours for name, label in NAMES.items()}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How many times as quick as both dense forms, by tokens, with all threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    threads = max(row["threads"] for row in rows)
    for axis, mode in zip(axes, ("inference", "training"), strict=True):
        for cache, line in (("cold", "-"), ("warm", "--")):
            here = [row for row in rows if (row["mode"], row["threads"], row["cache"]) == (mode, threads, cache)]
            for color, name in enumerate(("times stock dense", "times best dense")):
                if here:
                    axis.plot(
                        [row["tokens"] for row in here],
                        [row[name] for row in here],
                        line,
                        color=f"C{color}",
                        marker="o",
                        label=f"{name}, {cache}",
                    )
        axis.set(title=f"{mode}, {threads} threads", xlabel="tokens", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("times as quick")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = benchmark_parser(__doc__ or "", rounds=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 128, 2048, 16384])
    parser.add_argument("--caches", nargs="+", choices=["cold", "warm"], default=["cold", "warm"])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--picture", type=Path, help="draw the ratios of the layer into this file")
    args = parser.parse_args()
    vectors = os.environ.get("FAIRSEQ_VECTORS")
    print(machine() + (f"; vectors limited to {vectors}" if vectors else ""))
    rows = layer_rows(args)
    neurons = 2 ** (args.depth + 1) - 1
    print_table(rows, f"One layer {args.width} wide, {args.depth + 1} of {neurons} neurons a token")
    write_json(args.json, {"layer": rows})
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
