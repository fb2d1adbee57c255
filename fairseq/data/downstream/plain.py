"""``--task plain``: one text or label a line, in files called after the split and the column.

``{split}.raw.input0`` (raw text) or ``{split}.input0`` (symbols of the dictionary, as GPT-2 ids), the same with ``input1``
and so on, and ``{split}.label``; the splits are called train, dev or valid, and test. GLUE scripts of the original leave
such files in their folder ``processed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, takewhile, zip_longest
from pathlib import Path

from fairseq.data.downstream.configs import PlainConfig
from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import CLASSES, SETS, VALUES, Example, Job, Split, Written
from fairseq.data.downstream.layout import write as write_layout
from fairseq.data.downstream.reading import numbers, read_lines, required_directory
from fairseq.errors import ConfigError, DataError, DataNotFoundError

Label = Callable[[str, Path, int], str]  # (text, file, line) -> the label to write

# Name on disk -> names in the data set.
SPLITS = {
    "train": ("train",),
    "valid": ("valid", "dev", "dev_matched"),
    "valid1": ("valid1", "dev1", "dev_mismatched"),
    "test": ("test", "test_matched"),
    "test1": ("test1", "test_mismatched"),
}


@FORMATS.register("sentence_prediction", dataclass=PlainConfig)
@FORMATS.register("plain", dataclass=PlainConfig)
def write(job: Job) -> Written:
    """Every split that is there; a missing ``label`` file is a split without labels."""
    options = job.options
    divisor = options.divide_labels_by
    if divisor <= 0 or (divisor != 1 and not options.regression_target):
        raise ConfigError("--divide-labels-by takes a number above zero and needs --regression-target")
    if options.multi_label and options.regression_target:
        raise ConfigError("--multi-label and --regression-target exclude each other: choose one")
    required_directory(job.data_dir, "files such as train.raw.input0 and train.label")
    label = scaled(divisor) if options.regression_target else as_it_is
    splits = list(find_splits(job.data_dir, job.settings is not None, label))
    if not splits:
        raise DataNotFoundError(f"{job.data_dir} has no train.raw.input0, train.input0 or the like of dev and test")
    kind = VALUES if options.regression_target else SETS if options.multi_label else CLASSES
    written = write_layout(job, splits, kind)
    labels = written.splits[0].labels
    if labels:
        names = [label.split() for label in labels]
        width = len(names[0]) if options.regression_target else len({name for row in names for name in row})
        written.train_with = prediction_flags(width, kind)
    return written


def prediction_flags(num_classes: int, kind: str) -> str:
    """The flags of ``fairseq-train`` for ``num_classes`` classes, or regression on so many values."""
    flags = f"--task sentence_prediction --criterion sentence_prediction --num-classes {num_classes}"
    return flags + {VALUES: " --regression-target", SETS: " --multi-label"}.get(kind, "")


def as_it_is(text: str, path: Path, line: int) -> str:
    return text.strip()


def scaled(divisor: float) -> Label:
    """Numbers divided by ``divisor`` and printed with six significant digits, as awk does; as they are for 1."""

    def label(text: str, path: Path, line: int) -> str:
        values = numbers(text, path, line)
        return text.strip() if divisor == 1 else " ".join(f"{value / divisor:.6g}" for value in values)

    return label


def find_splits(directory: Path, prefer_raw: bool, label: Label) -> Iterator[Split]:
    """The splits in ``directory``; raw texts come first with an encoder, ready symbols without."""
    kinds = (".raw.input", ".input") if prefer_raw else (".input", ".raw.input")
    for name, sources in SPLITS.items():
        prefixes = [directory / (source + kind) for source in sources for kind in kinds]
        prefix = next((prefix for prefix in prefixes if Path(f"{prefix}0").is_file()), None)
        if prefix is None:
            continue
        files = list(takewhile(Path.is_file, (Path(f"{prefix}{k}") for k in count())))
        labels = directory / f"{prefix.name.split('.')[0]}.label"
        label_file = labels if labels.is_file() else None
        yield Split(name, files[0], _examples(files, label_file, label), tuple(files), label_file)


def _examples(files: list[Path], label_file: Path | None, label: Label) -> Iterator[Example]:
    columns = [*files, label_file] if label_file else files
    for rows in zip_longest(*map(read_lines, columns)):
        if None in rows:
            _refuse_lengths(columns)
        line = rows[0][0]
        texts = tuple(text for _, text in rows[: len(files)])
        yield Example(line, texts, label(rows[-1][1], label_file, line) if label_file else None)


def _refuse_lengths(files: list[Path]) -> None:
    lengths = [sum(1 for _ in read_lines(file)) for file in files]
    described = ", ".join(f"{file} has {length}" for file, length in zip(files, lengths, strict=True))
    raise DataError(f"files of one split must have as many lines as each other: {described}")
