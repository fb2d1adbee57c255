"""Train variants of the encoder side by side on one data-bin, and write a table and a picture.

    python examples/alibi_clap/study.py DATA --out DIR --variants alibi_asymmetrical clap zero_clap --seeds 1 2

Every variant is a file of ``config/pretraining``; ``base`` always takes part. All runs have the same updates, the same
tokens in an update and, for the same seed, the same batches and masks, so differences to ``base`` are taken seed by
seed. A run that is there already is not repeated, one that was interrupted goes on from its last checkpoint: give the
same command again. Whatever follows ``--set`` goes to every run, as ``fairseq-hydra-train`` takes it.
At the end the speed of all variants is measured in turns, because over an hour the machine may do other things too.

DIR gets ``table.md``, ``curves.png`` and ``results.json``, and a directory for every run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHORT_RUN = ["optimization.max_update=40", "common.log_interval=10", "checkpoint.no_save=true"]
SHORT_RUN += ["dataset.disable_validation=true"]
NOT_COMPARABLE = {"zero_clap_self_masking": "it predicts every token, so that its perplexity is another quantity"}


@dataclass(frozen=True)
class Study:
    """What is compared: configurations of a folder, with differences to ``baseline``. ``settings`` are those of a run."""

    configs: Path
    baseline: str
    settings: Callable[[argparse.Namespace, Run], list[str]]
    script: str


@dataclass
class Run:
    """One variant with one seed. ``curve`` holds (update, validation loss in bits); memory is the process's, in MB."""

    variant: str
    seed: int
    parameters: int = 0
    loss: float = float("nan")
    memory: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def directory(self, out: Path) -> Path:
        return out / f"{self.variant}-seed{self.seed}"


def settings(args: argparse.Namespace, run: Run) -> list[str]:
    """The overrides of every run."""
    return [
        *common_settings(args, run),
        "task.shorten_method=truncate",
        "task.shorten_to_fit=true",
        f"model.encoder_ffn_embed_dim={4 * args.width}",
        "optimization.clip_norm=1.0",
        f"lr_scheduler.warmup_updates={max(1, args.updates // 10)}",
        *args.set,
    ]


def common_settings(args: argparse.Namespace, run: Run) -> list[str]:
    """The overrides that do not depend on the configurations."""
    steps = max(1, args.updates // args.validations)
    return [
        f"task.data={args.data.resolve()}",
        f"common.seed={run.seed}",
        "common.fp16=false",
        f"common.log_interval={max(1, args.updates // 100)}",
        f"task.tokens_per_sample={args.tokens_per_sample}",
        f"model.max_positions={args.tokens_per_sample}",
        f"model.encoder_layers={args.layers}",
        f"model.encoder_embed_dim={args.width}",
        f"model.encoder_attention_heads={args.heads}",
        f"dataset.batch_size={args.batch_size}",
        "dataset.num_workers=0",
        "dataset.validate_interval=1000000",
        f"dataset.validate_interval_updates={steps}",
        f"checkpoint.save_interval_updates={steps}",
        "checkpoint.keep_interval_updates=1",
        f"optimization.max_update={args.updates}",
        f"optimization.lr=[{args.lr}]",
        "optimization.update_freq=[1]",
    ]


def command(args: argparse.Namespace, run: Run) -> list[str]:
    """The command line of one run; it works in its own directory, where it finds its last checkpoint again."""
    where = run.directory(args.out)
    return [
        *(sys.executable, "-m", "fairseq.cli.hydra_train"),
        *("--config-dir", str(args.study.configs), "--config-name", run.variant),
        f"hydra.run.dir={where}",
        f"checkpoint.save_dir={where / 'checkpoints'}",
        *args.study.settings(args, run),
    ]


def environment() -> dict[str, str]:
    """That of the runs: this checkout comes first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}


def train(args: argparse.Namespace, run: Run) -> Run:
    """Do what is left of ``run`` and read its logs; the result is kept in its directory."""
    where = run.directory(args.out)
    kept = where / "result.json"
    words = command(args, run)
    if kept.is_file():
        stored = json.loads(kept.read_text(encoding="utf-8"))
        if stored["settings"] != words[1:]:
            sys.exit(f"study: {where} was made with other settings; choose another --out or delete it")
        return Run(**stored["run"])
    where.mkdir(parents=True, exist_ok=True)
    log = where / "log.txt"
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment())
        try:
            # wait4, because it tells the peak memory of this one process.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            sys.exit("study: interrupted; the same command goes on from here")
    if process.returncode:
        sys.exit(f"study: {run.variant} with seed {run.seed} failed, see {log}\n  {last_line(log)}")
    read_log(run, log)
    run.memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    stored = {"settings": words[1:], "run": asdict(run)}
    kept.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    return run


def last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]


def read_log(run: Run, log: Path) -> None:
    """Fill ``run`` from its log, which a resumed run has appended to."""
    curve: dict[int, float] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if "num. model params: " in line:
            run.parameters = int(line.split("num. model params: ")[1].split()[0].replace(",", ""))
        if '{"epoch"' not in line:
            continue
        row = json.loads(line[line.index('{"epoch"') :])
        if "valid_loss" in row:
            curve[int(row["valid_num_updates"])] = float(row["valid_loss"])
    if not curve:
        sys.exit(f"study: no validation in {log}")
    run.curve = sorted(curve.items())
    run.loss = run.curve[-1][1]


def measure_speed(args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of every variant: short runs in turns, the median of all rounds; kept in ``speed.json``."""
    kept = args.out / "speed.json"
    if kept.is_file() and set(stored := json.loads(kept.read_text(encoding="utf-8"))) >= set(args.variants):
        return stored
    found: dict[str, list[float]] = {variant: [] for variant in args.variants}
    for number in range(args.speed_rounds):
        for variant in args.variants:
            with tempfile.TemporaryDirectory() as scratch:
                words = [
                    *command(args, Run(variant, args.seeds[0])),
                    f"hydra.run.dir={scratch}",
                    f"checkpoint.save_dir={scratch}",
                    *SHORT_RUN,
                ]
                done = subprocess.run(words, capture_output=True, text=True, env=environment())
            rates = [float(rate) for rate in re.findall(r'"wps": "([0-9.]+)"', done.stdout)]
            if done.returncode or len(rates) < 2:
                sys.exit(f"study: measuring the speed of {variant} failed\n{done.stderr[-2000:]}")
            found[variant].append(statistics.median(rates[1:]))
        print(f"speed, round {number + 1} of {args.speed_rounds}", flush=True)
    speed = {variant: statistics.median(rates) for variant, rates in found.items()}
    kept.write_text(json.dumps(speed, indent=1), encoding="utf-8")
    return speed


def spread(values: list[float]) -> str:
    return f"± {statistics.stdev(values):.3f}" if len(values) > 1 else "one seed"


def table(args: argparse.Namespace, runs: list[Run], speed: dict[str, float]) -> str:
    """Markdown: a row a variant, means over the seeds, standard deviations after the sign ±."""
    by, base = {(run.variant, run.seed): run for run in runs}, args.study.baseline
    rows = [
        f"| variant | parameters | validation loss (bits) | perplexity | loss - {base}, seed by seed | tokens/s | memory (MB) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for variant in dict.fromkeys(run.variant for run in runs):
        mine = [by[variant, seed] for seed in args.seeds]
        losses = [run.loss for run in mine]
        gaps = [run.loss - by[base, run.seed].loss for run in mine]
        loss = statistics.mean(losses)
        rows.append(
            f"| {variant} | {mine[0].parameters:,} | {loss:.3f} {spread(losses)} | {2**loss:.2f} | "
            + ("-" if variant == base else f"{statistics.mean(gaps):+.3f} {spread(gaps)}")
            + f" | {speed[variant]:,.0f}"
            + f" | {statistics.mean(run.memory for run in mine):,.0f} |"
        )
    return "\n".join(rows)


def picture(args: argparse.Namespace, runs: list[Run], path: Path) -> None:
    """Validation perplexity over updates: the mean of the seeds, and between the least and the greatest of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for variant in dict.fromkeys(run.variant for run in runs):
        curves = [dict(run.curve) for run in runs if run.variant == variant]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = [[2 ** curve[step] for curve in curves] for step in steps]
        (line,) = axes.plot(
            steps, [statistics.geometric_mean(v) for v in values], label=variant, marker="o", markersize=3
        )
        axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2)
    seeds = "seed" if len(args.seeds) == 1 else "seeds"
    axes.set(xlabel="update", ylabel="validation perplexity", yscale="log")
    axes.set_title(
        f"{args.layers} layers, {args.width} wide, {args.tokens_per_sample} tokens, {len(args.seeds)} {seeds}"
    )
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis("{x:.0f}")  # 600, not 6 x 10^2
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, HERE / "study")
    parser.add_argument("--variants", nargs="+", default=["alibi_asymmetrical", "learned_clap", "clap", "zero_clap"])
    return checked(parser, argv, Study(HERE / "config" / "pretraining", "base", settings, "study.py"))


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Those that do not depend on the configurations."""
    parser.add_argument("data", type=Path, help="directory that fairseq-preprocess wrote")
    parser.add_argument("--out", type=Path, default=out, help="directory of the results (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--validations", type=int, default=10, help="how often each run is validated")
    parser.add_argument("--tokens-per-sample", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--speed-rounds", type=int, default=3, help="short runs of each for its speed")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")


def checked(parser: argparse.ArgumentParser, argv: list[str] | None, study: Study) -> argparse.Namespace:
    args = parser.parse_args(argv)
    args.study = study
    known = sorted(path.stem for path in study.configs.glob("*.yaml"))
    for name in args.variants:
        if name not in known:
            parser.error(f"no variant {name!r} in {study.configs}; there are: {', '.join(known)}")
        if name in NOT_COMPARABLE:
            parser.error(f"{name} cannot be compared with the others: {NOT_COMPARABLE[name]}")
    if min(args.updates, args.validations, args.speed_rounds) < 1:
        parser.error("--updates, --validations and --speed-rounds must be at least 1")
    if not (args.data / "dict.txt").is_file():
        parser.error(f"{args.data} holds no dict.txt; give the directory that fairseq-preprocess wrote")
    args.variants = list(dict.fromkeys([study.baseline, *args.variants]))
    args.seeds = list(dict.fromkeys(args.seeds))
    args.out = args.out.resolve()
    return args


def compare(args: argparse.Namespace, argv: list[str] | None) -> None:
    """Make all runs of the study and write what came of them."""
    runs = []
    plan = [Run(variant, seed) for seed in args.seeds for variant in args.variants]
    for number, run in enumerate(plan, 1):
        started = time.perf_counter()
        done = train(args, run)
        runs.append(done)
        print(
            f"[{number}/{len(plan)}] {run.variant}, seed {run.seed}: validation loss {done.loss:.3f} "
            f"({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    runs.sort(key=lambda run: (args.variants.index(run.variant), run.seed))
    speed = measure_speed(args)
    text = table(args, runs, speed)
    shown = shlex.join(
        ["python", f"examples/alibi_clap/{args.study.script}", *(sys.argv[1:] if argv is None else argv)]
    )
    tokens = args.updates * args.batch_size * args.tokens_per_sample
    note = (
        f"{args.updates:,} updates of at most {args.batch_size * args.tokens_per_sample:,} tokens ({tokens:,} in all)."
    )
    (args.out / "table.md").write_text(f"`{shown}`\n\n{note}\n\n{text}\n", encoding="utf-8")
    (args.out / "results.json").write_text(
        json.dumps({"command": shown, "tokens_per_second": speed, "runs": [asdict(run) for run in runs]}, indent=1),
        encoding="utf-8",
    )
    picture(args, runs, args.out / "curves.png")
    print(f"\n{text}\n\nwritten: {args.out / 'table.md'}, {args.out / 'curves.png'}")


def main(argv: list[str] | None = None) -> None:
    compare(parse(argv), argv)


if __name__ == "__main__":
    main()
