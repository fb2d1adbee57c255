"""Training speed: this package, the original and Transformers, side by side.

    python benchmarks/train_throughput.py                 6 layers, 512 wide, 512 tokens x 4, everybody's memory as shipped
    python benchmarks/train_throughput.py --rows all --allocators default tuned --picture throughput.png
    python benchmarks/train_throughput.py --rounds 1 --updates 5 --only ours-fp32 original-fp32

Complete updates are timed: data, masking, forward, backward, clipping, optimizer and logging. The two fairseqs run
their `fairseq-train` with the same flags on the same data-bin; Transformers runs a plain loop on the same tokens. Each
contestant is a process of its own, in turns, with the same number of threads. The first updates of each process are
left out. Speed counts input tokens, padding there is none.

Allocators: `shipped`, each as it comes (this package keeps freed memory, its peers do not); `default`, that of the C
library for all; `tuned`, freed memory kept on huge pages for all. The floor is what an update's matrix products alone would
take at the rate that products reach in the same minutes. "Waiting" is the fraction of the time between updates: reading, masking
and collating that is not done ahead, logging.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import common
import synthetic
from throughput_report import Contestant, Run, Setup, draw, table

WORKERS = Path(__file__).resolve().parent / "workers"
# The original's --bf16 stops at the first update on a CPU, so it takes part in float32 only.
CONTESTANTS = ("original-fp32", "transformers-fp32", "ours-fp32", "transformers-bf16", "ours-bf16")
MODELS = {
    "small": {"layers": 6, "width": 512, "heads": 8, "ffn": 2048},
    "base": {"layers": 12, "width": 768, "heads": 12, "ffn": 3072},
}
BATCHES = {128: 16, 512: 4, 2048: 1}  # tokens per sample: samples; always 2048 tokens per update
ROWS = tuple(f"{model}-{tokens}" for model in MODELS for tokens in BATCHES)


def fairseq_flags(setup: Setup, data: Path, save_dir: Path, bf16: bool) -> list[str]:
    """Flags of the command, understood by the original and by this package alike."""
    flags = f"""{data} --cpu --task masked_lm --criterion masked_lm --arch roberta
        --sample-break-mode none --tokens-per-sample {setup.tokens} --max-positions {setup.tokens}
        --mask-prob {setup.mask_prob} --batch-size {setup.batch} --required-batch-size-multiple 1
        --encoder-layers {setup.layers} --encoder-embed-dim {setup.width} --encoder-ffn-embed-dim {setup.ffn}
        --encoder-attention-heads {setup.heads} --dropout {setup.dropout} --attention-dropout {setup.dropout}
        --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0
        --lr-scheduler polynomial_decay --lr 0.0005 --warmup-updates 100 --total-num-update 1000
        --max-update {setup.updates} --log-format json --log-interval 5 --num-workers {setup.num_workers} --seed 1
        --disable-validation --no-save --save-dir {save_dir}""".split()
    return flags + (["--bf16"] if bf16 else [])


def run_contestant(one: Contestant, setup: Setup, options: argparse.Namespace, python: Path) -> Run:
    """Train in a fresh process; the speed over the updates after the first `setup.skip`."""
    bf16 = one.precision == "bf16"
    # Twice what the updates read: no epoch ends within the measurement.
    tokens = 2 * setup.updates * setup.batch * setup.tokens
    data = synthetic.write_data_bin(
        options.cache / "data" / common.digest(setup.vocabulary, tokens), setup.vocabulary, tokens
    )
    env = common.environment(options.threads, one.environment)
    env.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        if one.who == "transformers":
            settings = Path(scratch) / "settings.json"
            settings.write_text(json.dumps({**asdict(setup), "stream": str(data / "train.bin"), "bf16": bf16}))
            command: list[str | Path] = [python, WORKERS / "transformers_train.py", report, settings]
        else:
            if one.who == "ours":
                env["PYTHONPATH"] = str(common.REPOSITORY)
            flags = fairseq_flags(setup, data, Path(scratch) / "checkpoints", bf16)
            command = [python, WORKERS / "fairseq_train.py", report, *flags]
        measured = common.run_measured(command, env=env, cwd=Path(scratch))
        times = json.loads(report.read_text())
    if len(times["ends"]) != setup.updates:
        raise SystemExit(f"{one.name} made {len(times['ends'])} of {setup.updates} updates:\n{measured.stdout[-2000:]}")
    return _figures(one, setup, times, measured)


def _figures(one: Contestant, setup: Setup, times: dict[str, list[float]], measured: common.Measured) -> Run:
    first = setup.skip - 1
    ends, cpu, starts = times["ends"][first:], times["cpu"][first:], times["starts"][setup.skip :]
    count, span = len(ends) - 1, ends[-1] - ends[0]
    rate = count * setup.batch * setup.tokens / span
    waiting = sum(start - end for start, end in zip(starts, ends[:-1], strict=True)) / span
    run = Run(rate, (cpu[-1] - cpu[0]) / count, measured.peak_mib, waiting, measured.wall)
    note = f"{rate:.0f} tokens/s, {run.cpu_per_update:.2f} CPU s/update, peak {run.peak_mib:.0f} MiB"
    print(f"#   {one.name} ({one.allocator}): {note}, waiting {100 * waiting:.1f} %", file=sys.stderr, flush=True)
    return run


def product_rates(setup: Setup, options: argparse.Namespace) -> dict[str, float]:
    """Operations a second of matrix products, by type, in a process of its own."""
    types = sorted({"fp32": "float32", "bf16": "bfloat16"}[name.split("-")[1]] for name in options.only)
    job = {"rows": 2048, "inner": setup.width, "outer": setup.ffn, "types": sorted({"float32", *types})}
    command = [sys.executable, WORKERS / "product_rate.py", json.dumps(job)]
    env = common.environment(options.threads, common.TUNED_ALLOCATOR)
    rates: dict[str, float] = json.loads(common.run_measured(command, env=env).stdout)
    words = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in rates.items())
    print(f"#   products: {words}", file=sys.stderr, flush=True)
    return rates


def measure(
    setup: Setup, options: argparse.Namespace, python: dict[str, Path]
) -> tuple[list[dict[str, object]], object]:
    """The table's rows for one setup, and the figures of every process."""
    every = [Contestant(*name.split("-"), allocator) for allocator in options.allocators for name in options.only]
    jobs: dict[str, Callable[[], object]] = {
        f"{one.name} ({one.allocator})": partial(run_contestant, one, setup, options, python[one.who]) for one in every
    }
    jobs["products"] = partial(product_rates, setup, options)
    found = common.interleave(jobs, options.rounds)
    products: list[dict[str, float]] = found.pop("products")  # type: ignore[assignment]
    rates = {name: max(round_[name] for round_ in products) for name in products[0]}
    results: dict[Contestant, list[Run]] = dict(zip(every, found.values(), strict=True))  # type: ignore[arg-type]
    runs = {name: [asdict(run) for run in value] for name, value in found.items()}  # type: ignore[call-overload]
    return table(setup, results, rates), {"setup": asdict(setup), "operations/s": rates, "runs": runs}


def setups(options: argparse.Namespace) -> list[Setup]:
    """What `--rows` names, or the one described by the other options."""
    shared = {name: getattr(options, name) for name in ("vocabulary", "dropout", "updates", "skip", "num_workers")}
    if not options.rows:
        sizes = {name: getattr(options, name) for name in ("layers", "width", "heads", "ffn", "tokens", "batch")}
        return [Setup(**sizes, **shared)]
    names = [row.split("-") for row in (ROWS if "all" in options.rows else options.rows)]
    return [Setup(**MODELS[name], tokens=int(size), batch=BATCHES[int(size)], **shared) for name, size in names]


def parse() -> argparse.Namespace:
    parser = common.benchmark_parser("Training speed beside the original and Transformers.")
    parser.add_argument("--rows", nargs="+", choices=("all", *ROWS), help="named setups, instead of one by its sizes")
    sizes = {**MODELS["small"], "vocabulary": 50265, "tokens": 512, "batch": 4}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.1, help="of activations and of attention alike")
    parser.add_argument("--updates", type=int, default=12, help="updates in a process")
    parser.add_argument("--skip", type=int, default=2, help="first updates of a process left out (at least 1)")
    parser.add_argument("--num-workers", type=int, default=1, help="data workers of the two fairseqs")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="who takes part")
    memory = ("shipped", "default", "tuned")
    parser.add_argument("--allocators", nargs="+", choices=memory, default=["shipped"], help="whose memory")
    parser.add_argument("--picture", type=Path, help="also draw the table into this PNG")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.cache = options.cache.resolve()
    if not 1 <= options.skip <= options.updates - 2:
        raise SystemExit("--skip must be at least 1 and leave two updates")
    python = {"ours": Path(sys.executable)}
    if any(name.startswith("original") for name in options.only):
        python["original"] = common.original_python(options.cache)
    if any(name.startswith("transformers") for name in options.only):
        python["transformers"] = common.transformers_python(options.cache)
    print(f"# {common.machine()}, {options.threads} threads")
    rows: list[dict[str, object]] = []
    figures = []
    for setup in setups(options):
        more, runs = measure(setup, options, python)
        rows, figures = rows + more, [*figures, runs]
        # After every setup: a long run that is interrupted keeps what it has.
        common.write_json(options.json, {"threads": options.threads, "rows": rows, "figures": figures})
        if options.picture:
            draw(rows, options.picture)
    title = (
        f"RoBERTa, vocabulary {options.vocabulary}, dropout {options.dropout}, {options.rounds} rounds of "
        f"{options.updates - options.skip} updates"
    )
    common.print_table(rows, title)


if __name__ == "__main__":
    main()
