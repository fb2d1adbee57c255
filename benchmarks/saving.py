"""How long a save of a checkpoint holds the training up: at once, in the background, and by another tree of the package.

    python benchmarks/saving.py                        100 million parameters, 1.2 GB of tensors in a checkpoint
    python benchmarks/saving.py --against TREE         beside the background writer of another checkout
    python benchmarks/saving.py --quick                a tiny model, seconds: does it run?

`fairseq-train` trains a RoBERTa with Adam and saves every few updates, two files each time (one of its own name, and
`checkpoint_last`), on the disk of `--directory`. The contestants take turns, each in a process of its own.

stall = the save call + what the following updates lose until the checkpoint is written: how much longer they take
together than as many undisturbed ones (the median update since the save before and until the next). The first save of
a process takes new memory and is told apart. Processor times count besides: where others use the machine, they are what
can be compared; of a synchronous save the call's has the writing in it. The floor of a synchronous save: its bytes, written
in one go and flushed to the disk in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import common
import synthetic

WORKER = Path(__file__).resolve().parent / "workers" / "saving_train.py"
FILES = 2  # written at every save
MODEL = {"layers": 12, "width": 768, "vocabulary": 19000, "tokens": 16, "between": 10, "saves": 3}
TINY = {"layers": 2, "width": 64, "vocabulary": 1000, "tokens": 16, "between": 10, "saves": 3}


@dataclass
class Save:
    """One save, in seconds."""

    call: float
    slowdown: float
    until_written: float
    call_cpu: float
    writer_cpu: float

    @property
    def stall(self) -> float:
        return self.call + self.slowdown


@dataclass
class Run:
    """One process: its first save and the later ones, the median undisturbed update, bytes of a file, peak memory."""

    first: Save
    later: list[Save]
    update: float
    size: int
    peak_mib: float


def flags(options: argparse.Namespace, data: Path, save_dir: Path, background: bool) -> list[str]:
    size = options.size
    words = f"""{data} --cpu --task masked_lm --criterion masked_lm --arch roberta --sample-break-mode none
        --tokens-per-sample {size["tokens"]} --max-positions {size["tokens"]} --batch-size 1
        --required-batch-size-multiple 1 --encoder-layers {size["layers"]} --encoder-embed-dim {size["width"]}
        --encoder-ffn-embed-dim {4 * size["width"]} --encoder-attention-heads {size["width"] // 64 or 1}
        --optimizer adam --lr 0.0001 --max-update {size["between"] * size["saves"] + size["between"] - 1}
        --log-format none --num-workers 0 --disable-validation --save-dir {save_dir}
        --save-interval-updates {size["between"]} --keep-interval-updates 1""".split()
    return words + (["--write-checkpoints-asynchronously"] if background else [])


def train(tree: Path, background: bool, data: Path, options: argparse.Namespace) -> Run:
    env = common.environment(options.threads, {"PYTHONPATH": str(tree)})
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        report, save_dir = Path(scratch) / "report.json", Path(scratch) / "checkpoints"
        command = [sys.executable, WORKER, report, *flags(options, data, save_dir, background)]
        measured = common.run_measured(command, env=env, cwd=Path(scratch))
        size = (save_dir / "checkpoint_last.pt").stat().st_size
        run = figures(json.loads(report.read_text()), options.size["saves"])
    run.size, run.peak_mib = size, measured.peak_mib
    print(f"#   stalls: {', '.join(f'{save.stall:.3f}' for save in (run.first, *run.later))} s", file=sys.stderr)
    return run


def figures(report: dict, wanted: int) -> Run:
    """The stalls in the report of a worker; the last save, at the end of the training, is left out."""
    ends, records = report["updates"], report["saves"][:wanted]
    spans = list(pairwise(ends))[2:]  # the first updates take memory
    disturbed = [(record["called"], max(record["written"], record["returned"])) for record in records]
    calm = [span for span in spans if not any(_meet(span, time) for time in disturbed)]
    saves = []
    for number, (record, busy) in enumerate(zip(records, disturbed, strict=True)):
        # Others may use the machine: the undisturbed updates are those between the saves before and after this one.
        since = disturbed[number - 1][1] if number else ends[0]
        until = disturbed[number + 1][0] if number + 1 < len(disturbed) else ends[-1]
        near = [end - start for start, end in calm if since <= start and end <= until]
        if not near:
            raise SystemExit(
                "a checkpoint took until the next save: the disk is too slow for so few updates in between"
            )
        update = common.median(near)
        during = [span for span in spans if _meet(span, busy)]
        call = record["returned"] - record["called"]
        slowdown = during[-1][1] - during[0][0] - call - len(during) * update
        saves.append(Save(call, slowdown, busy[1] - busy[0], record["call_cpu"], record["writer_cpu"]))
    return Run(saves[0], saves[1:], common.median([end - start for start, end in calm]), 0, 0.0)


def _meet(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and a[1] >= b[0]


def write_floor(size: int, directory: Path) -> float:
    """Seconds that this disk takes for `size` bytes, buffered as programs write, and flushed."""
    block = os.urandom(1 << 22)
    with tempfile.NamedTemporaryFile(dir=directory, buffering=0) as file:
        start = time.perf_counter()
        for at in range(0, size, len(block)):
            file.write(block[: size - at])
        os.fsync(file.fileno())
        return time.perf_counter() - start


def row(name: str, runs: list[Run], stall: float) -> dict[str, object]:
    later = [save for run in runs for save in run.later]
    found = {key: common.median([asdict(save)[key] for save in later]) for key in asdict(later[0])}
    own = common.median([save.stall for save in later])
    return {
        "contestant": name,
        "update s": common.median([run.update for run in runs]),
        "save call s": found["call"],
        "next updates lose s": found["slowdown"],
        "stall s": own,
        "stall / synchronous": own / stall,
        "call / synchronous": found["call"] / stall,
        "first stall s": common.median([run.first.stall for run in runs]),
        "written after s": found["until_written"],
        "call's CPU s": found["call_cpu"],
        "writer's CPU s": found["writer_cpu"],
        "peak MiB": common.median([run.peak_mib for run in runs]),
    }


def parse() -> argparse.Namespace:
    parser = common.benchmark_parser("What a save costs the training.", rounds=3)
    parser.add_argument("--directory", type=Path, help="where checkpoints go: a disk, not memory (default: --cache)")
    parser.add_argument("--against", type=Path, help="another checkout of this package, whose writers take part")
    parser.add_argument("--quick", action="store_true", help="a tiny model: only to see that it runs")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    options.directory = (options.directory or options.cache).resolve()
    options.directory.mkdir(parents=True, exist_ok=True)
    options.size = TINY if options.quick else MODEL
    return options


def main() -> None:
    options = parse()
    size = options.size
    tokens = 2 * size["tokens"] * size["between"] * (size["saves"] + 1)
    data = synthetic.write_data_bin(
        options.cache / "data" / common.digest("saving", size["vocabulary"], tokens), size["vocabulary"], tokens
    )
    trees = {"": common.REPOSITORY, **({" (other tree)": options.against.resolve()} if options.against else {})}
    jobs = {
        f"{kind}{suffix}": partial(train, tree, kind == "background", data, options)
        for suffix, tree in trees.items()
        for kind in ("synchronous", "background")
    }
    print(f"# {common.machine()}, {options.threads} threads")
    runs = common.interleave(jobs, options.rounds)
    written = runs["synchronous"][0].size
    floors = [write_floor(FILES * written, options.directory) for _ in range(max(options.rounds, 3))]
    stall = common.median([save.stall for run in runs["synchronous"] for save in run.later])
    rows = [row(name, found, stall) for name, found in runs.items()]
    common.print_table(rows, f"Stalls of the training by a save of {FILES} files of {written / 1e9:.2f} GB")
    floor = common.median(floors)
    print(
        f"\nFloor of a synchronous save: {floor:.3f} s ({FILES * written / floor / 1e9:.2f} GB/s, {common.spread(floors)} s)"
    )
    raw = {name: [asdict(run) for run in found] for name, found in runs.items()}
    common.write_json(options.json, {"rows": rows, "floor s": floors, "bytes": written, "runs": raw})


if __name__ == "__main__":
    main()
