"""Do `--bf16` and `--amp` learn as float32 does? Loss curves of short runs on real text, against the spread of seeds.

    python benchmarks/precision_curves.py DATA-BIN [--updates 300] [--seeds 1 2 3] --json curves.json --picture curves.png

Float32 runs with every seed; the low precisions run with the first one. A mode passes when its mean loss over the last
updates differs from that of float32 (same seed, so same batches and masks) by no more than float32's seeds differ among
themselves. Every run is a `fairseq-train` of its own, in turns; losses are those it prints, in bits a masked token.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common

MODES = {"fp32": [], "bf16": ["--bf16"], "amp": ["--amp"]}
LOG_EVERY = 5


def train(options: argparse.Namespace, mode: str, seed: int) -> dict[str, Any]:
    """Losses by update, and seconds, of one run."""
    words = f"""{options.data} --cpu --task masked_lm --criterion masked_lm --arch roberta --sample-break-mode complete
        --tokens-per-sample {options.tokens} --max-positions {options.tokens} --batch-size {options.batch}
        --encoder-layers {options.layers} --encoder-embed-dim {options.width} --encoder-ffn-embed-dim {4 * options.width}
        --encoder-attention-heads {options.width // 64} --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6
        --weight-decay 0.01 --clip-norm 1.0 --lr-scheduler polynomial_decay --lr {options.lr}
        --warmup-updates {options.updates // 10} --total-num-update {options.updates} --max-update {options.updates}
        --log-format json --log-interval {LOG_EVERY} --num-workers 1 --seed {seed} --disable-validation --no-save
        --skip-invalid-size-inputs-valid-test""".split()
    env = common.environment(options.threads, {"PYTHONPATH": str(common.REPOSITORY)})
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "fairseq.cli.train", *words, *MODES[mode], "--save-dir", scratch]
        done = common.run_measured(command, env=env, cwd=Path(scratch))
    rows = [json.loads(line[line.index('{"epoch"') :]) for line in done.stdout.splitlines() if '{"epoch"' in line]
    losses = {int(row["num_updates"]): float(row["loss"]) for row in rows if "loss" in row}
    if not losses:
        raise SystemExit(f"no losses in the log of {mode}:\n{done.stdout[-1000:]}")
    print(
        f"#   {mode}, seed {seed}: last loss {losses[max(losses)]:.3f}, {done.wall:.0f} s", file=sys.stderr, flush=True
    )
    return {"mode": mode, "seed": seed, "losses": losses, "seconds": done.wall}


def final(run: Mapping[str, Any], share: float = 0.2) -> float:
    """Mean loss over the last `share` of a run."""
    values = [run["losses"][update] for update in sorted(run["losses"])]
    last = values[-max(1, round(share * len(values))) :]
    return sum(last) / len(last)


def judge(runs: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """One row a mode: the difference from float32 of the same seed, and the largest one between seeds of float32."""
    seeds = [final(run) for run in runs if run["mode"] == "fp32"]
    spread = max(seeds) - min(seeds)
    reference = next(final(run) for run in runs if run["mode"] == "fp32" and run["seed"] == seed)
    rows = []
    for run in runs:
        if run["seed"] == seed:
            off = final(run) - reference
            verdict = "" if run["mode"] == "fp32" else "yes" if abs(off) <= spread else "NO"
            rows.append(
                {"mode": run["mode"], "loss": final(run), "off fp32": off, "seed spread": spread, "within": verdict}
            )
    return rows


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Curves of all runs; float32's seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4))
    plain = [run["losses"] for run in runs if run["mode"] == "fp32"]
    updates = sorted(plain[0])
    lows, highs = ([pick(losses[u] for losses in plain) for u in updates] for pick in (min, max))
    axis.fill_between(updates, lows, highs, color="#bbbbbb", label=f"fp32, {len(plain)} seeds")
    colours = {"fp32": "#333333", "bf16": "#2a7f62", "amp": "#b5651d"}
    for run in (run for run in runs if run["seed"] == runs[0]["seed"]):
        axis.plot(updates, [run["losses"][u] for u in updates], color=colours[run["mode"]], label=run["mode"], lw=1)
    axis.set_xlabel("updates")
    axis.set_ylabel("training loss, bits a masked token")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = common.benchmark_parser("Loss curves of the precisions against the spread of seeds.")
    parser.add_argument("data", type=Path, help="data-bin of real text")
    sizes = {"updates": 300, "layers": 4, "width": 256, "tokens": 128, "batch": 16}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="two at least; the first one is compared"
    )
    parser.add_argument("--picture", type=Path, help="write the curves into this PNG")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if len(options.seeds) < 2 or options.updates < 10:
        raise SystemExit("give at least two --seeds and ten --updates")
    if options.width < 64 or options.width % 64:
        raise SystemExit(f"--width must be a multiple of 64, the width of a head, but is {options.width}")
    print(f"# {common.machine()}, {options.threads} threads")
    plan = [("fp32", options.seeds[0]), ("bf16", options.seeds[0]), ("amp", options.seeds[0])]
    plan += [("fp32", seed) for seed in options.seeds[1:]]
    runs = [train(options, mode, seed) for mode, seed in plan]
    rows = judge(runs, options.seeds[0])
    title = f"{options.layers}x{options.width}, {options.updates} updates of {options.batch} x {options.tokens} tokens"
    common.print_table(rows, title)
    common.write_json(options.json, {"rows": rows, "runs": runs})
    if options.picture:
        draw(runs, options.picture)


if __name__ == "__main__":
    main()
