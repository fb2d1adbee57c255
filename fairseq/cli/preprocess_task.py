"""``fairseq-preprocess-task``: the files of a downstream dataset in one step to what fine-tuning reads."""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.cli import process
from fairseq.cli.common import add_bpe_options, bpe_settings, byte_progress, find_dictionary, run_command
from fairseq.cli.stopping import ends_when_asked, uninterrupted
from fairseq.data import manifest
from fairseq.dataclass.flags import FairseqParser, gen_parser_from_dataclass
from fairseq.dataclass.user_module import import_user_module
from fairseq.errors import ConfigError, DataError, DataNotFoundError, FairseqError
from fairseq.file_io import SCRATCH
from fairseq.finetune.reading import FORMATS
from fairseq.locks import claimed
from fairseq.registry import BPES

if TYPE_CHECKING:
    from fairseq.finetune.layout import Job, SplitSummary, Written

PROGRAM = "fairseq-preprocess-task"
_SHOWN_LABELS = 6
_MADE = re.compile(r"input\d+|label")
_CONTENT = re.compile(r"^(dict\.txt|manifest\.json)$|\.(bin|idx|jsonl|label)$")  # of those folders
_EXAMPLES = """\
tasks:
  glue/RTE        one task of GLUE, from its own TSV files (also CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, WNLI, AX)
  glue            every task of GLUE that is in --data-dir, into DEST/RTE-bin and so on
  race, commonsense_qa, swag, squad, squad2, conll
                  these datasets, from their own JSON, CSV or column files
  plain           one text or label a line: train.raw.input0, train.raw.input1, train.label, the same with dev and test

examples:
  fairseq-preprocess-task --task glue/RTE --data-dir GLUE --dest RTE-bin --bpe gpt2 --srcdict dict.txt
  fairseq-preprocess-task --task plain --data-dir reviews --dest reviews-bin --bpe sentencepiece \\
      --sentencepiece-model xlmr/sentencepiece.bpe.model
Then the flags that are printed at the end, and those of the model and its optimizer:
  fairseq-train RTE-bin --task sentence_prediction --num-classes 2 --init-token 0 --separator-token 2 \\
      --finetune-from-model model.pt --arch roberta_base --max-positions 512 --batch-size 16 --optimizer adam --lr 2e-5 \\
      --max-epoch 10
"""


def get_parser() -> argparse.ArgumentParser:
    """The options of the command, of every format and of every encoder."""
    parser = FairseqParser(
        prog=PROGRAM,
        description="Turn the files of a downstream dataset into the directory that fine-tuning reads: texts are"
        " encoded, binarized and numbered by the model's dictionary, labels by their frequency.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="the dataset, see below")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="where its files are")
    parser.add_argument("--dest", required=True, metavar="DIR", help="the directory to make")
    parser.add_argument(
        "--bpe", choices=BPES.names(), help="how texts become pieces; leave out for texts of dictionary symbols"
    )
    parser.add_argument(
        "--srcdict",
        metavar="FILE",
        help="dictionary of the model to fine-tune; default: dict.txt beside the files of --bpe, and RoBERTa's own"
        " (downloaded) for --bpe gpt2 without files",
    )
    parser.add_argument(
        "--label-dict",
        metavar="FILE",
        help="number the classes as this label/dict.txt does, instead of by their frequency in the training split",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=process.processors(),
        metavar="N",
        help="processes (%(default)s)",
    )
    parser.add_argument(
        "--keep-empty", action="store_true", help="keep examples with one empty text beside others (default: refuse)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run made in --dest")
    parser.add_argument("--no-progress-bar", action="store_true", help="show no bars")
    parser.add_argument("--user-dir", metavar="DIR", help="import this plugin directory first")
    options = parser.add_argument_group("options of single tasks")
    for config in {FORMATS.config_class(name): None for name in FORMATS.names()}:
        if config is not None:
            gen_parser_from_dataclass(options, config())
    add_bpe_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Make ``args.dest``, which appears only when everything has succeeded. Raises FairseqError."""
    import_user_module(args)
    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, but is {args.workers}")
    data_dir = Path(args.data_dir)
    if not data_dir.is_dir():
        raise DataNotFoundError(f"directory not found: {data_dir} (given as --data-dir)")
    name, _, variant = args.task.partition("/")
    if name not in FORMATS and not variant:
        _suggest_glue(name)
    write = FORMATS.get(name)
    targets = _glue_targets(args, data_dir, variant) if name == "glue" else [(variant, Path(args.dest))]
    for _, dest in targets:
        _check_dest(dest, args.overwrite)
        if dest.is_dir() and data_dir.is_dir() and dest.samefile(data_dir):
            raise ConfigError(
                f"--dest {dest} is the directory of the data; give another one, whose files may be replaced"
            )
    job = _job(args, name)
    for variant, dest in targets:
        started = time.perf_counter()
        try:
            with claimed(dest, "fairseq-preprocess-task", "wait for it, or choose another --dest", beside=True):
                written = _publish(write, job, variant, dest, args.overwrite)
        except OSError as error:
            if isinstance(error, FairseqError):
                raise
            raise DataError(f"cannot write {dest}: {error.strerror or error}") from error
        print_table(written, dest, time.perf_counter() - started)


def _suggest_glue(name: str) -> None:
    """Raise ConfigError when ``name`` is a task of GLUE, which has a longer name here."""
    from fairseq.finetune.glue_files import find_task

    try:
        task = find_task(name)
    except ConfigError:
        return
    raise ConfigError(f"unknown task {name!r}; did you mean 'glue/{task.name}'?")


def _glue_targets(args: argparse.Namespace, data_dir: Path, variant: str) -> list[tuple[str, Path]]:
    """(task, directory to make): one named task goes to ``--dest`` itself, several to folders in it."""
    from fairseq.finetune.glue_files import TASKS, find_task, present

    if variant.lower() not in ("", "all"):
        return [(find_task(variant).name, Path(args.dest))]
    found = present(data_dir)
    if not found:
        raise DataNotFoundError(f"{data_dir} has no folder of a GLUE task ({', '.join(TASKS)})")
    return [(task.name, Path(args.dest) / f"{task.name}-bin") for task in found]


def _check_dest(dest: Path, overwrite: bool) -> None:
    if dest.exists() and not dest.is_dir():
        raise ConfigError(f"--dest {dest} is a file; give a directory")
    there = [entry for entry in dest.iterdir() if _MADE.fullmatch(entry.name)] if dest.is_dir() else []
    if there and not overwrite:
        found = ", ".join(sorted(entry.name for entry in there))
        raise ConfigError(f"{dest} has {found} already; replace it with --overwrite, or give another --dest")
    for entry in there:
        foreign = (
            [entry] if not entry.is_dir() else [file for file in entry.iterdir() if not _CONTENT.search(file.name)]
        )
        if foreign:
            raise ConfigError(
                f"--overwrite would delete {foreign[0]}, which {PROGRAM} did not make; give another --dest"
            )


def _job(args: argparse.Namespace, name: str) -> Job:
    """What all targets share; data and destination are set for each."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.finetune.layout import Job

    config: Any = FORMATS.config_class(name)
    return Job(
        data_dir=Path(args.data_dir),
        dest=Path(args.dest),
        dictionary=Dictionary.load(find_dictionary(args.srcdict, args)),
        settings=bpe_settings(args),
        workers=args.workers,
        options=None if config is None else config.from_namespace(args),
        keep_empty=args.keep_empty,
        label_dictionary=None if args.label_dict is None else Dictionary.load(args.label_dict),
        progress=byte_progress(args),
    )


def _publish(write: Any, job: Job, variant: str, dest: Path, overwrite: bool) -> Written:
    """Write into a directory beside ``dest``, then move its folders to their place."""
    from fairseq.data.inventory import describe_files

    dest.parent.mkdir(parents=True, exist_ok=True)
    for left in dest.parent.glob(f".{glob.escape(dest.name)}{SCRATCH}*"):  # nobody else is here
        shutil.rmtree(left, ignore_errors=True)
        print(f"note: removed {left}, which a run that was killed had left", file=sys.stderr)
    job.variant = variant
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}{SCRATCH}") as scratch:
        old, job.dest = Path(scratch) / "old", Path(scratch) / "new"
        old.mkdir()
        job.dest.mkdir()
        written = write(job)
        made = list(job.dest.iterdir())
        taken = sorted(entry.name for entry in made if (dest / entry.name).exists())
        if taken and not overwrite:
            raise ConfigError(f"{dest} has {', '.join(taken)} already; give another --dest, or --overwrite")
        for folder in made:
            files = describe_files(folder, [path.name for path in folder.iterdir()])
            manifest.write_manifest(folder / manifest.NAME, files)
        dest.mkdir(exist_ok=True)
        replaced = [entry for entry in dest.iterdir() if _MADE.fullmatch(entry.name) or entry.name in taken]
        # input0 goes first and comes last: no task reads the others without it, so that nothing old is read with the new.
        with uninterrupted():
            for entry in sorted(replaced, key=lambda entry: entry.name != "input0"):
                os.replace(entry, old / entry.name)
            for entry in sorted(made, key=lambda entry: entry.name == "input0"):
                os.replace(entry, dest / entry.name)
    return written


def print_table(written: Written, dest: Path, seconds: float) -> None:
    """Splits with rows, tokens, the fraction of unknown tokens and the labels; then the notes."""
    rows = [("split", "rows", "tokens", "unknown", "labels")]
    for split in written.splits:
        unknown = f"{100 * split.unknown / split.tokens:.2f} %" if split.tokens else "-"
        rows.append((split.name, f"{split.rows:,}", f"{split.tokens:,}", unknown, _labels(split, written.kind)))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    for name, *figures, labels in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:4], strict=True)]
        print("  ".join([f"{name:<{widths[0]}}", *cells, labels]).rstrip())
    sys.stdout.flush()
    for note in written.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{dest}: done in {seconds:.1f} s")
    if written.train_with:
        print(f"train with: fairseq-train {dest} {written.train_with}")
    print(flush=True)


def _labels(split: SplitSummary, kind: str) -> str:
    """The labels by frequency; the range of numbers."""
    if not split.labels:
        return "none"
    if kind == "values":  # layout.VALUES
        values = [float(value) for label in split.labels.elements() for value in label.split()]
        return f"{min(values):g} to {max(values):g}, mean {sum(values) / len(values):.3g}"
    counted = [f"{label or '(none)'} {count:,}" for label, count in split.labels.most_common(_SHOWN_LABELS)]
    more = len(split.labels) - _SHOWN_LABELS
    return ", ".join(counted) + (f" and {more} more" if more > 0 else "")


def cli_main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    run_command(PROGRAM, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    args = get_parser().parse_args(argv)
    with ends_when_asked(PROGRAM):
        main(args)


if __name__ == "__main__":
    cli_main()
