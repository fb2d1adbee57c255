"""Training speed: this package, the original and Transformers, side by side.

    python benchmarks/train_throughput.py                 the table of the README: 6 layers, 512 wide, 512 tokens x 4
    python benchmarks/train_throughput.py --rounds 1 --updates 5 --only ours-fp32 original-fp32

Complete updates are timed: data, masking, forward, backward, clipping, optimizer and logging. The two fairseqs run
their `fairseq-train` with the same flags on the same data-bin; Transformers runs a plain loop on the same tokens. Each
contestant is a process of its own, in turns, with the same number of threads and the default allocator. The first
updates of each process are left out. Speed counts input tokens, padding there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import common
import synthetic

WORKERS = Path(__file__).resolve().parent / "workers"
# The original's --bf16 stops at the first update on a CPU, so it takes part in float32 only.
CONTESTANTS = ("original-fp32", "transformers-fp32", "ours-fp32", "transformers-bf16", "ours-bf16")
BASELINE = "original-fp32"


@dataclass
class Setup:
    """Model and batch; `tokens` counts the positions of a sample, bos included."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    tokens: int
    batch: int
    dropout: float
    updates: int
    skip: int
    mask_prob: float = 0.15


@dataclass
class Run:
    """Figures of one process."""

    tokens_per_second: float
    cpu_per_update: float
    peak_mib: float
    seconds: float


def fairseq_flags(setup: Setup, data: Path, save_dir: Path, bf16: bool) -> list[str]:
    """Flags of the command, understood by the original and by this package alike."""
    flags = f"""{data} --cpu --task masked_lm --criterion masked_lm --arch roberta
        --sample-break-mode none --tokens-per-sample {setup.tokens} --max-positions {setup.tokens}
        --mask-prob {setup.mask_prob} --batch-size {setup.batch} --required-batch-size-multiple 1
        --encoder-layers {setup.layers} --encoder-embed-dim {setup.width} --encoder-ffn-embed-dim {setup.ffn}
        --encoder-attention-heads {setup.heads} --dropout {setup.dropout} --attention-dropout {setup.dropout}
        --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0
        --lr-scheduler polynomial_decay --lr 0.0005 --warmup-updates 100 --total-num-update 1000
        --max-update {setup.updates} --log-format json --log-interval 5 --num-workers 1 --seed 1
        --disable-validation --no-save --save-dir {save_dir}""".split()
    return flags + (["--bf16"] if bf16 else [])


def run_contestant(name: str, setup: Setup, options: argparse.Namespace, python: Path) -> Run:
    """Train in a fresh process; the speed over the updates after the first `setup.skip`."""
    who, precision = name.split("-")
    bf16 = precision == "bf16"
    # Twice what the updates read: no epoch ends within the measurement.
    tokens = 2 * setup.updates * setup.batch * setup.tokens
    data = synthetic.write_data_bin(
        options.cache / "data" / common.digest(setup.vocabulary, tokens), setup.vocabulary, tokens
    )
    env = common.environment(options.threads)
    env.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        if who == "transformers":
            settings = Path(scratch) / "settings.json"
            settings.write_text(json.dumps({**asdict(setup), "stream": str(data / "train.bin"), "bf16": bf16}))
            command: list[str | Path] = [python, WORKERS / "transformers_train.py", report, settings]
        else:
            if who == "ours":
                env["PYTHONPATH"] = str(common.REPOSITORY)
            flags = fairseq_flags(setup, data, Path(scratch) / "checkpoints", bf16)
            command = [python, WORKERS / "fairseq_train.py", report, *flags]
        measured = common.run_measured(command, env=env, cwd=Path(scratch))
        times = json.loads(report.read_text())
        ends, cpu = times["ends"], times["cpu"][setup.skip - 1 :]
    if len(ends) != setup.updates:
        raise SystemExit(f"{name} made {len(ends)} updates instead of {setup.updates}:\n{measured.stdout[-2000:]}")
    counted = ends[setup.skip - 1 :]
    rate = (len(counted) - 1) * setup.batch * setup.tokens / (counted[-1] - counted[0])
    run = Run(rate, (cpu[-1] - cpu[0]) / (len(cpu) - 1), measured.peak_mib, measured.wall)
    note = f"{rate:.0f} tokens/s, {run.cpu_per_update:.2f} CPU s/update, peak {run.peak_mib:.0f} MiB"
    print(f"#   {name}: {note}", file=sys.stderr, flush=True)
    return run


def table(results: dict[str, list[Run]]) -> list[dict[str, object]]:
    """One row a contestant; ratios of medians against the original's float32."""
    speed = {name: common.median([run.tokens_per_second for run in runs]) for name, runs in results.items()}
    rows = []
    for name, runs in results.items():
        who, precision = name.split("-")
        rows.append(
            {
                "contestant": who,
                "precision": precision,
                "tokens/s": speed[name],
                "min-max": common.spread([run.tokens_per_second for run in runs]),
                "x original fp32": speed[name] / speed[BASELINE] if BASELINE in speed else None,
                "CPU s/update": common.median([run.cpu_per_update for run in runs]),
                "peak MiB": float(round(common.median([run.peak_mib for run in runs]))),
            }
        )
    return rows


def parse() -> argparse.Namespace:
    parser = common.benchmark_parser("Training speed beside the original and Transformers.")
    sizes = {"layers": 6, "width": 512, "heads": 8, "ffn": 2048, "vocabulary": 50265, "tokens": 512, "batch": 4}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.1, help="of activations and of attention alike")
    parser.add_argument("--updates", type=int, default=12, help="updates in a process")
    parser.add_argument("--skip", type=int, default=2, help="first updates of a process left out (at least 1)")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="who takes part")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.cache = options.cache.resolve()
    setup = Setup(**{field: getattr(options, field) for field in Setup.__annotations__ if hasattr(options, field)})
    if not 1 <= setup.skip <= setup.updates - 2:
        raise SystemExit("--skip must be at least 1 and leave two updates")
    python = {"ours": Path(sys.executable)}
    if any(name.startswith("original") for name in options.only):
        python["original"] = common.original_python(options.cache)
    if any(name.startswith("transformers") for name in options.only):
        python["transformers"] = common.transformers_python(options.cache)
    contestants: dict[str, Callable[[], Run]] = {
        name: partial(run_contestant, name, setup, options, python[name.split("-")[0]]) for name in options.only
    }
    print(f"# {common.machine()}, {options.threads} threads, allocator {os.environ.get('FAIRSEQ_MALLOC', 'default')}")
    results = common.interleave(contestants, options.rounds)
    rows = table(results)
    title = (
        f"RoBERTa {setup.layers} x {setup.width}, vocabulary {setup.vocabulary}, {setup.tokens} tokens x {setup.batch}, "
        f"dropout {setup.dropout}, {options.rounds} rounds of {setup.updates - setup.skip} updates"
    )
    common.print_table(rows, title)
    runs = {name: [asdict(run) for run in value] for name, value in results.items()}
    common.write_json(options.json, {"setup": asdict(setup), "threads": options.threads, "rows": rows, "runs": runs})


if __name__ == "__main__":
    main()
