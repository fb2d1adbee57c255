"""Fast feedforward beside its dense counterpart of as many neurons: one layer by the number of tokens, and a whole model.

    python benchmarks/fff.py                                   # the tables; about 25 minutes on two cores
    python benchmarks/fff.py --parts model --rounds 3 --json fff_model.json
    python benchmarks/fff.py --tokens 1 2048 --caches cold --json fff.json --picture fff.png

Contestants, all in float32 on the same random inputs, new ones every round: the layer (ours); stock PyTorch's dense linears; our own
dense linears (the best product of this machine); two `F.embedding_bag` calls on the layer's routes, which is what reading
the visited rows costs; the published form, which computes all neurons and masks them. Training is forward and all
gradients; to the bags it adds the time to fill two gradients with zeros. Inputs and tables are cold (256 MiB were written in between)
or warm (the same call just ran).

The whole model is `ultrafastbert_1x11` beside `crammed_bert_4095` on our own linears and PyTorch's own encoder; a training
step predicts 25 % of the tokens and includes the optimizer.
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

WORKERS = Path(__file__).parent / "workers"
NAMES = {"stock": "stock dense", "dense_here": "best dense", "masked": "masked"}


def measure(worker: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """What the worker prints of its contestants: median seconds of a call."""
    env = environment(threads, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    lines = run_measured([sys.executable, WORKERS / worker, json.dumps(job)], env=env).stdout.splitlines()
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


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
                    times = measure("fff_layer.py", {**job, "width": args.width, "depth": args.depth}, threads)
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


MODEL = {"layers": 16, "heads": 12, "batch": 32, "tokens": 128, "vocabulary": 32768}


def model_rows(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row each for features and training steps, and a row for each kind of operator in a step."""
    job = {**MODEL, "layers": args.layers, "width": args.width, "depth": args.depth, "rounds": args.rounds}
    found = measure("fff_model.py", job, args.threads)
    rows = []
    for name, label in (("features", "features"), ("step", "training step")):
        times = found[name]
        row: dict[str, Any] = {"what": label, "threads": args.threads, "seconds": times["ours"]}
        rows.append(row | {f"times {NAMES[other]}": times[other] / times["ours"] for other in ("dense_here", "stock")})
    ours, dense = found["profile"]["ours"], found["profile"]["dense_here"]
    whole = sum(ours.values())
    kinds = [
        {"kind": kind, "seconds": took, "%": 100 * took / whole, "seconds, best dense": dense[kind]}
        for kind, took in sorted(ours.items(), key=lambda item: -item[1])
    ]
    return rows, kinds


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
    parser.add_argument("--parts", choices=["layer", "model"], nargs="+", default=["layer", "model"])
    parser.add_argument("--layers", type=int, default=MODEL["layers"], help="of the model")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--picture", type=Path, help="draw the ratios of the layer into this file")
    args = parser.parse_args()
    vectors = os.environ.get("FAIRSEQ_VECTORS")
    print(machine() + (f"; vectors limited to {vectors}" if vectors else ""))
    neurons, figures = 2 ** (args.depth + 1) - 1, {}
    if "layer" in args.parts:
        rows = figures["layer"] = layer_rows(args)
        print_table(rows, f"One layer {args.width} wide, {args.depth + 1} of {neurons} neurons a token")
        if args.picture:
            draw(rows, args.picture)
    if "model" in args.parts:
        rows, kinds = figures["model"], figures["profile"] = model_rows(args)
        print_table(rows, f"A model of {args.layers} such layers, {MODEL['batch']} x {MODEL['tokens']} tokens")
        print_table(kinds, "Where a training step of it goes")
    write_json(args.json, figures)


if __name__ == "__main__":
    main()
