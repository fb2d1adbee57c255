"""Attention with convolutions: time and memory of a training step of a stack of mixers, beside plain attention.

    python benchmarks/conv_attention.py --json conv.json --picture conv.png      # 128 to 2048 tokens; several minutes
    python benchmarks/conv_attention.py --lengths 2048 --only plain composite    # the goal: at most 2 times the time

Every mixer has the same width, heads and dropout, and a reach of 8 (convolutions in projections: 4). On a machine that others
use too, the ratios of processor time say more than those of the clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import benchmark_parser, environment, interleave, machine, median, print_table, run_measured, write_json

WORKER = Path(__file__).parent / "workers" / "conv_layers.py"
PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"kernel": "qk_convfixed 8"},
    "query": {"kernel": "qk_convq 8"},
    "key": {"kernel": "qk_convk 8"},
    "composite": {"kernel": "qk_convfixed_convq_convk 8"},
    "no content": {"kernel": "convfixed_convq_convk 8"},
    "depthwise": {"kernel": "qk_convolution 8"},
    "convbert": {"kernel": "convbert"},
    "values depthwise": {"kernel": "qk", "value_projection": "convolution_depth 4"},
    "values convolution": {"kernel": "qk", "value_projection": "convolution 4 1"},
    "all depthwise": {
        "kernel": "qk",
        "value_projection": "convolution_depth_mixed 4",
        "query_key_projection": "convolution_depth_mixed 4",
    },
}
CONTESTANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"mixer": "self_attention", "options": {}},
    **{name: {"mixer": "conv_attention", "options": options} for name, options in OPTIONS.items()},
}


def measure(job: dict[str, Any], threads: int) -> dict[str, float]:
    env = environment(threads, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    done = run_measured([sys.executable, WORKER, json.dumps(job)], env=env)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(tokens: int, found: dict[str, list[dict[str, float]]], batch: int) -> list[dict[str, Any]]:
    middle = {name: {key: median([one[key] for one in all_]) for key in all_[0]} for name, all_ in found.items()}
    plain = middle.get(PLAIN)
    return [
        {
            "tokens": tokens,
            "mixer": name,
            "tokens/s": batch * tokens / one["seconds"],
            "seconds": one["seconds"],
            "CPU s": one["cpu"],
            "MiB": one["mib"],
            "time, of plain": one["seconds"] / plain["seconds"] if plain else None,
            "CPU, of plain": one["cpu"] / plain["cpu"] if plain else None,
            "MiB, of plain": one["mib"] / plain["mib"] if plain else None,
        }
        for name, one in middle.items()
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Processor time and memory by length, one line a mixer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (key, label) in zip(axes, (("CPU s", "processor seconds of a step"), ("MiB", "MiB")), strict=True):
        for name in dict.fromkeys(row["mixer"] for row in rows):
            own = [row for row in rows if row["mixer"] == name]
            style = {"color": "black", "linewidth": 2.5} if name == PLAIN else {"linewidth": 1.2}
            axis.plot([row["tokens"] for row in own], [row[key] for row in own], marker="o", label=name, **style)
        axis.set(xscale="log", yscale="log", xlabel="tokens of a sequence", ylabel=label)
        axis.set_xticks(sorted({row["tokens"] for row in rows}), labels=sorted({row["tokens"] for row in rows}))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = benchmark_parser(__doc__ or "", rounds=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048], help="tokens")
    parser.add_argument("--batch", type=int, default=2, help="sequences")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1, help="attention dropout")
    parser.add_argument("--steps", type=int, default=2, help="steps of a process; the best counts")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--picture", type=Path, help="also draw the figures into this PNG")
    args = parser.parse_args()
    print(machine())
    rows: list[dict[str, Any]] = []
    for tokens in args.lengths:
        common = {name: getattr(args, name) for name in ("batch", "layers", "width", "heads", "dropout", "steps")}
        jobs = {name: {**CONTESTANTS[name], "tokens": tokens, **common} for name in args.only}
        found = interleave(
            {name: (lambda job=job: measure(job, args.threads)) for name, job in jobs.items()}, args.rounds
        )
        rows += rows_of(tokens, found, args.batch)
    print_table(rows, f"Training step of {args.layers} token mixers, width {args.width}, {args.heads} heads")
    write_json(args.json, {"rows": rows})
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
