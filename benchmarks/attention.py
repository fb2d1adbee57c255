"""Attention with ALiBi: time and memory of a training step of a stack of layers, ours beside the fork's way and SDPA.

    python benchmarks/attention.py                        # the table for 2048 tokens, 2 sequences; several minutes
    python benchmarks/attention.py --model                # the whole encoder with head, loss and optimizer
    python benchmarks/attention.py --lengths 1024 2048 4096 8192 --batch 1 --only fused    # growth with the length

The floor of the products alone: 2 in forward, 5 in backward (the scores are computed again), each 2 B H T^2 D
operations; the table gives the rate that a path reaches counted in those, whatever it does itself. On a machine that
others use too, the ratios of processor time say more than those of the clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import benchmark_parser, environment, interleave, machine, median, print_table, run_measured, write_json

WORKERS = Path(__file__).parent / "workers"
CONTESTANTS = {
    "fork": ("fork", "float32"),
    "eager": ("eager", "float32"),
    "sdpa": ("sdpa", "float32"),
    "fused": ("fused", "float32"),
    "fused-bf16": ("fused", "bfloat16"),
}
# With --model: the fork's encoder against what fairseq-train runs.
MODELS = {"fork": ("fork", "float32"), "fused": ("ours", "float32"), "fused-bf16": ("ours", "bfloat16")}


def measure(worker: str, job: dict[str, Any], threads: int) -> dict[str, float]:
    env = environment(threads, {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)})
    done = run_measured([sys.executable, WORKERS / worker, json.dumps(job)], env=env)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = benchmark_parser(__doc__ or "", rounds=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048], help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=2, help="sequences")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0], help="attention dropout")
    parser.add_argument("--steps", type=int, default=2, help="steps of a process; the best counts")
    parser.add_argument(
        "--model", action="store_true", help="train the whole encoder, dropout 0.1, not attention alone"
    )
    parser.add_argument("--vocabulary", type=int, default=50265, help="symbols of the whole encoder's dictionary")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    args = parser.parse_args()
    print(machine())
    contestants, worker = (MODELS, "alibi_model.py") if args.model else (CONTESTANTS, "attention_layers.py")
    rows = []
    for tokens in args.lengths:
        for dropout in args.dropout:
            common = {name: getattr(args, name) for name in ("batch", "layers", "width", "heads", "steps")}
            jobs = {
                name: {"path": path, "dtype": dtype, "tokens": tokens, "dropout": dropout, **common}
                for name, (path, dtype) in contestants.items()
                if name in args.only
            }
            if args.model:
                for job in jobs.values():
                    job.update(dropout=0.1, attention_dropout=dropout, vocabulary=args.vocabulary)
            found = interleave(
                {name: (lambda job=job: measure(worker, job, args.threads)) for name, job in jobs.items()},
                args.rounds,
            )
            times = {name: median([result["seconds"] for result in results]) for name, results in found.items()}
            cpus = {name: median([result["cpu"] for result in results]) for name, results in found.items()}
            sizes = {name: median([result["mib"] for result in results]) for name, results in found.items()}
            work = 7 * 2 * args.batch * args.width * tokens**2 * args.layers * 1e-9
            for name in jobs:
                row = {
                    "tokens": tokens,
                    "dropout": dropout,
                    "path": name,
                    "tokens/s": args.batch * tokens / times[name],
                    "seconds": times[name],
                    "CPU s": cpus[name],
                    "MiB": sizes[name],
                }
                if not args.model:
                    row["GFLOP/s"] = work / times[name]
                for peer in ("fork", "sdpa"):
                    row[f"times {peer}"] = times[peer] / times[name] if peer in times else None
                    row[f"CPU, times {peer}"] = cpus[peer] / cpus[name] if peer in cpus else None
                    row[f"MiB of {peer}"] = sizes[name] / sizes[peer] if peer in sizes else None
                rows.append(row)
    what = "layers of an encoder with its head" if args.model else "attention layers"
    print_table(rows, f"Training step of {args.layers} {what}, width {args.width}, {args.heads} heads")
    write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
