"""BiGS beside attention, by the length of the inputs: tokens per second, peak memory, and the two ways to its convolutions.

    python benchmarks/bigs.py                                   # the tables; about an hour on two cores
    python benchmarks/bigs.py --tokens 512 4096 --rounds 2 --json bigs.json --picture bigs.png

Encoders of 6 layers, 512 wide, 64 modes, in float32 on the same random ids, as many tokens a batch at every length: BiGS with its
convolutions in chunks and by Fourier transforms, attention, attention with ALiBi (no position embeddings anywhere; about
as many parameters). Training is the loss of 15 % of the tokens with all gradients, inference the features. Memory is by how much
the peak of a fresh process grows in one pass. Below the tables stand the ratios that matter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import benchmark_parser, environment, machine, print_table, run_measured, write_json

WORKER = Path(__file__).parent / "workers" / "bigs_model.py"
NAMES = ("bigs, chunks", "bigs, fft", "attention", "alibi")


def measure(job: dict[str, Any], threads: int) -> dict[str, float]:
    env = environment(threads, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    return json.loads(run_measured([sys.executable, WORKER, json.dumps(job)], env=env).stdout.splitlines()[-1])


def job_of(args: argparse.Namespace, tokens: int, **more: Any) -> dict[str, Any]:
    sizes = {"tokens": tokens, "batch": max(1, args.batch_tokens // tokens), "width": args.width, "layers": args.layers}
    return {**sizes, "rounds": args.rounds, **more}


def model_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each mode and length: tokens per second and MiB of every contestant."""
    rows = []
    for training in (True, False):
        for tokens in args.tokens:
            mode = "training" if training else "inference"
            print(f"# {mode}, {tokens} tokens", file=sys.stderr, flush=True)
            job = job_of(args, tokens, kind="model", training=training)
            times = measure(job, args.threads)
            row: dict[str, Any] = {"mode": mode, "tokens": tokens, "batch": job["batch"]}
            row |= {f"{name}, tokens/s": job["batch"] * tokens / times[name] for name in NAMES}
            for name in NAMES:
                row[f"{name}, MiB"] = measure({**job, "memory": True, "only": [name]}, args.threads)["peak_mib"]
            rows.append(row)
    return rows


def operator_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each length: forward and backward of the convolutions, both ways, and of the linear maps of a block."""
    rows = []
    for tokens in args.tokens:
        print(f"# operator, {tokens} tokens", file=sys.stderr, flush=True)
        times = measure(job_of(args, tokens, kind="operator"), args.threads)
        rows.append(
            {"tokens": tokens}
            | {f"{name}, ms": seconds * 1e3 for name, seconds in times.items()}
            | {"fft / chunks": times["fft"] / times["chunks"], "chunks / linears": times["chunks"] / times["linears"]}
        )
    return rows


def ratios(models: Sequence[dict[str, Any]], operators: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the benchmark is for, with what is expected; lengths that were not measured are left out."""
    by_length = {row["tokens"]: row for row in operators}
    training = {row["tokens"]: row for row in models if row["mode"] == "training"}
    speed, memory = "bigs, chunks, tokens/s", "bigs, chunks, MiB"
    found: list[dict[str, Any]] = []

    def add(what: str, value: float, expected: str) -> None:
        found.append({"ratio": what, "measured": value, "expected": expected})

    for tokens in sorted({512, 4096} & by_length.keys()):
        add(f"operator, {tokens} tokens: fft / chunks", by_length[tokens]["fft / chunks"], ">= 1.8")
    if by_length:
        add("operator / linears of a block, worst", max(row["chunks / linears"] for row in operators), "<= 0.25")
    for tokens, expected in ((512, ">= 1.1"), (4096, ">= 1.15")):
        if tokens in training:
            row = training[tokens]
            add(f"model, {tokens} tokens: chunks / fft", row[speed] / row["bigs, fft, tokens/s"], expected)
    if {512, 16384} <= training.keys():
        add("model: tokens/s at 16384 / at 512", training[16384][speed] / training[512][speed], ">= 0.8")
    held = [row[memory] / (row["batch"] * tokens) for tokens, row in training.items() if tokens >= 1024]
    if len(held) > 1:
        add("model, from 1024 tokens: memory per token, most / least", max(held) / min(held), "<= 1.1")
    return found


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Tokens per second above, memory below, by length; training left, inference right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True)
    for column, mode in enumerate(("training", "inference")):
        here = [row for row in rows if row["mode"] == mode]
        for line, unit in enumerate(("tokens/s", "MiB")):
            axis = axes[line][column]
            for name in NAMES:
                axis.plot(
                    [row["tokens"] for row in here], [row[f"{name}, {unit}"] for row in here], marker="o", label=name
                )
            axis.set(title=mode if line == 0 else "", xscale="log", yscale="log", xlabel="tokens" if line else "")
            axis.grid(alpha=0.3)
            axis.set_ylabel(unit if column == 0 else "")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = benchmark_parser(__doc__ or "", rounds=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens a batch, at every length")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    args = parser.parse_args()
    print(machine())
    operators, models = operator_rows(args), model_rows(args)
    print_table(models, f"Encoders of {args.layers} layers, {args.width} wide, {args.batch_tokens} tokens a batch")
    print_table(operators, "Forward and backward of a block's convolutions, and of its linear maps")
    wanted = ratios(models, operators)
    print_table(wanted, "Ratios")
    write_json(args.json, {"models": models, "operators": operators, "ratios": wanted})
    if args.picture:
        draw(models, args.picture)


if __name__ == "__main__":
    main()
