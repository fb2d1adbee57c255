"""Files with a text or label per line (``--task plain``), GLUE's TSV files (``--task glue/RTE``, Wang et al. 2018).

Plain files: ``{split}.raw.input0`` (raw text) or ``{split}.input0`` (symbols of the dictionary, as GPT-2 ids), the
same with ``input1`` and so on, and ``{split}.label``; the splits are called train, dev or valid, and test. GLUE
scripts of the original leave such files in their folder ``processed``.

GLUE: quotes are ordinary characters in these files. Columns, headers and splits are those that the original's script
cuts, beside WNLI and the diagnostic set (AX), which it leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile, zip_longest
from pathlib import Path

from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.finetune.layout import CLASSES, JOINED, SETS, VALUES, Example, Job, Split, Written
from fairseq.finetune.layout import write as write_layout
from fairseq.finetune.reading import (
    FORMATS,
    PlainConfig,
    first_existing,
    numbers,
    one_of,
    place,
    read_lines,
)
from fairseq.registry import nearest

Label = Callable[[str, str], str]  # (text, its place) -> the label to write

# Name on disk -> names in the dataset.
SPLITS = {
    "train": ("train",),
    "valid": ("valid", "dev", "dev_matched"),
    "valid1": ("valid1", "dev1", "dev_mismatched"),
    "test": ("test", "test_matched"),
    "test1": ("test1", "test_mismatched"),
}


@FORMATS.register("sentence_prediction", dataclass=PlainConfig)
@FORMATS.register("plain", dataclass=PlainConfig)
def write_plain(job: Job) -> Written:
    """Every split that is there; a missing ``label`` file is a split without labels."""
    options = job.options
    divisor = options.divide_labels_by
    if divisor <= 0 or (divisor != 1 and not options.regression_target):
        raise ConfigError("--divide-labels-by takes a number above zero and needs --regression-target")
    if options.multi_label and options.regression_target:
        raise ConfigError("--multi-label and --regression-target exclude each other: choose one")
    label = partial(scaled_label, divisor=divisor) if options.regression_target else lambda text, where: text.strip()
    splits = list(glue_splits(job.data_dir, job.settings is not None, label))
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
    """The flags of ``fairseq-train`` for ``num_classes`` classes, or regression on that many values."""
    flags = f"--task sentence_prediction --criterion sentence_prediction --num-classes {num_classes}"
    return flags + {VALUES: " --regression-target", SETS: " --multi-label"}.get(kind, "") + f" {JOINED}"


def scaled_label(text: str, where: str, divisor: float) -> str:
    """Numbers divided by ``divisor`` and printed with six significant digits, as awk does; as they are for 1."""
    values = numbers(text, where)
    return text.strip() if divisor == 1 else " ".join(f"{value / divisor:.6g}" for value in values)


def glue_splits(directory: Path, prefer_raw: bool, label: Label) -> Iterator[Split]:
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
        yield Example(line, texts, label(rows[-1][1], place(label_file, line)) if label_file else None)


def _refuse_lengths(files: list[Path]) -> None:
    lengths = [sum(1 for _ in read_lines(file)) for file in files]
    described = ", ".join(f"{file} has {length}" for file, length in zip(files, lengths, strict=True))
    raise DataError(f"files of one split must have as many lines as each other: {described}")


STS_B_SCALE = 5.0  # the scores 0 to 5 are learnt as 0 to 1


@dataclass(frozen=True)
class GlueSplit:
    """Where a split stands: candidate files, columns of the texts and of the label, counted from 1 (0: no label)."""

    name: str
    files: tuple[str, ...]
    texts: tuple[int, ...]
    label: int = 0
    header: bool = True


@dataclass(frozen=True)
class GlueTask:
    """One task: its splits on disk, classes (none: regression), metrics as the criterions call them, and the names of
    the files that the GLUE site takes, by split."""

    name: str
    splits: tuple[GlueSplit, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    submissions: dict[str, str]
    trains: bool = True  # False: a test set for the model of another task
    empty_texts: bool = False  # True: the real data has pairs with one empty text

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def num_classes(self) -> int:
        return len(self.labels) or 1

    @property
    def metric(self) -> str:
        """The one by which the best checkpoint is chosen."""
        return self.metrics[0]


def _three(
    texts: tuple[int, ...], label: int, test_texts: tuple[int, ...] | None = None, header: bool = True
) -> tuple[GlueSplit, ...]:
    return (
        GlueSplit("train", ("train.tsv",), texts, label, header),
        GlueSplit("valid", ("dev.tsv",), texts, label, header),
        GlueSplit("test", ("test.tsv",), test_texts or texts),
    )


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MRPC = (
    GlueSplit("train", ("train.tsv", "msr_paraphrase_train.txt"), (4, 5), 1),
    GlueSplit("valid", ("dev.tsv", "msr_paraphrase_dev.txt"), (4, 5), 1),
    GlueSplit("test", ("test.tsv", "msr_paraphrase_test.txt"), (4, 5)),
)
_MNLI = (
    GlueSplit("train", ("train.tsv",), (9, 10), 12),
    GlueSplit("valid", ("dev_matched.tsv",), (9, 10), 16),
    GlueSplit("valid1", ("dev_mismatched.tsv",), (9, 10), 16),
    GlueSplit("test", ("test_matched.tsv",), (9, 10)),
    GlueSplit("test1", ("test_mismatched.tsv",), (9, 10)),
)
_AX = (GlueSplit("test", ("diagnostic.tsv", "AX.tsv"), (2, 3)),)
_MNLI_LABELS = ("contradiction", "entailment", "neutral")
_F1 = ("acc_and_f1", "accuracy", "f1")
_PEARSON = ("pearson_and_spearman", "pearson", "spearman")

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("CoLA", _three((4,), 2, (2,), header=False), _BINARY, ("mcc", "accuracy"), {"test": "CoLA.tsv"}),
        GlueTask("SST-2", _three((1,), 2, (2,)), _BINARY, ("accuracy",), {"test": "SST-2.tsv"}),
        GlueTask("MRPC", _MRPC, _BINARY, _F1, {"test": "MRPC.tsv"}),
        GlueTask("STS-B", _three((8, 9), 10), (), _PEARSON, {"test": "STS-B.tsv"}),
        GlueTask("QQP", _three((4, 5), 6, (2, 3)), _BINARY, _F1, {"test": "QQP.tsv"}, empty_texts=True),
        GlueTask("MNLI", _MNLI, _MNLI_LABELS, ("accuracy",), {"test": "MNLI-m.tsv", "test1": "MNLI-mm.tsv"}),
        GlueTask("QNLI", _three((2, 3), 4), _ENTAILMENT, ("accuracy",), {"test": "QNLI.tsv"}),
        GlueTask("RTE", _three((2, 3), 4), _ENTAILMENT, ("accuracy",), {"test": "RTE.tsv"}),
        GlueTask("WNLI", _three((2, 3), 4), _BINARY, ("accuracy",), {"test": "WNLI.tsv"}),
        GlueTask("AX", _AX, _MNLI_LABELS, ("mcc", "accuracy"), {"test": "AX.tsv"}, trains=False),
    )
}


def find_task(name: str) -> GlueTask:
    """The task called ``name`` in any spelling of case and hyphens. Raises ConfigError with the nearest name."""
    spellings = {_plain(known): task for known, task in TASKS.items()}
    if _plain(name) not in spellings:
        raise ConfigError(f"unknown GLUE task {name!r}{nearest(name, list(TASKS)) or '.'} Known: {', '.join(TASKS)}")
    return spellings[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def task_directory(data_dir: Path, task: GlueTask) -> Path | None:
    """Where the files of ``task`` are: a folder of its name in ``data_dir``, or ``data_dir``; None when they are not."""
    names = {_plain(task.name), "diagnostic"} if task.name == "AX" else {_plain(task.name)}
    folders = [folder for folder in sorted(data_dir.iterdir()) if folder.is_dir() and _plain(folder.name) in names]
    for folder in folders:
        if _has_files(folder, task):
            return folder
    return data_dir if _has_files(data_dir, task) and not folders else None


def present(data_dir: Path) -> list[GlueTask]:
    """The tasks that have a folder of their own in ``data_dir`` (the diagnostic set may lie in it)."""
    found = []
    for task in TASKS.values():
        folder = task_directory(data_dir, task)
        if folder is not None and (folder != data_dir or (data_dir / "diagnostic.tsv").is_file() and task.name == "AX"):
            found.append(task)
    return found


def _has_files(folder: Path, task: GlueTask) -> bool:
    if any(first_existing(folder, split.files) for split in task.splits):
        return True
    return task.trains and any((folder / name).is_file() for name in ("train.raw.input0", "train.input0"))


@FORMATS.register("glue")
def write_glue(job: Job) -> Written:
    """The task ``job.variant``; splits that are not there are left out, with a note."""
    task = find_task(job.variant)
    folder = task_directory(job.data_dir, task)
    if folder is None:
        names = ", ".join(split.files[0] for split in task.splits)
        raise DataNotFoundError(f"{job.data_dir} has neither a folder {task.name} with {names} nor these files")
    reader = _Reader(task, folder)
    splits = list(reader.splits()) or list(glue_splits(folder, job.settings is not None, reader.label))
    kind = VALUES if task.regression else CLASSES
    written = write_layout(job, splits, kind, keep_empty=task.empty_texts)
    found = {split.name for split in splits}
    lacking = [split for split in task.splits if split.name not in found]
    written.notes += [f"{folder} has no {split.files[0]}, so there is no {split.name}" for split in lacking]
    dropped = reader.dropped.items()
    written.notes += [f"{path}: {count} rows with too few columns are left out" for path, count in dropped]
    if task.trains:
        written.train_with = prediction_flags(task.num_classes, kind)
    return written


class _Reader:
    """The files of one task."""

    def __init__(self, task: GlueTask, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.dropped: Counter[Path] = Counter()

    def label(self, text: str, where: str) -> str:
        if self.task.regression:
            return scaled_label(text, where, STS_B_SCALE)
        return one_of(text.strip(), self.task.labels, where)

    def splits(self) -> Iterator[Split]:
        dev_ids = self._dev_ids()
        for split in self.task.splits:
            path = first_existing(self.folder, split.files)
            wanted = None
            if dev_ids and split.name in ("train", "valid"):
                path, wanted = first_existing(self.folder, self.task.splits[0].files), split.name == "valid"
            if path is not None:
                yield Split(split.name, path, self._examples(path, split, dev_ids, wanted))

    def _dev_ids(self) -> set[tuple[str, str]]:
        """MRPC as Microsoft ships it: one training file, and GLUE's list of the pairs that make the dev set."""
        path = self.folder / "dev_ids.tsv"
        if self.task.name != "MRPC" or first_existing(self.folder, self.task.splits[1].files) or not path.is_file():
            return set()
        return {tuple(line.split("\t")[:2]) for _, line in read_lines(path)}  # type: ignore[misc]

    def _examples(
        self, path: Path, split: GlueSplit, dev_ids: set[tuple[str, str]], wanted: bool | None
    ) -> Iterator[Example]:
        """The rows; with ``wanted`` only those that are (True) or are not (False) among ``dev_ids``."""
        columns = 0
        for line, text in read_lines(path):
            fields = text.split("\t")
            if not columns:
                columns = self._columns(path, line, len(fields), split)
                if split.header:
                    self._check_heading(path, line, fields, split)
                    continue
            if len(fields) != columns:
                if self.task.name == "QQP" and split.label:  # as the original's script does
                    self.dropped[path] += 1
                    continue
                raise DataError(f"{place(path, line)} has {len(fields)} columns, but the file has {columns}")
            if wanted is not None and ((fields[1], fields[2]) in dev_ids) != wanted:
                continue
            texts = tuple(fields[column - 1] for column in split.texts)
            yield Example(line, texts, self.label(fields[split.label - 1], place(path, line)) if split.label else None)

    def _check_heading(self, path: Path, line: int, fields: list[str], split: GlueSplit) -> None:
        """Raise DataError when the first line is an example: it would be lost. A heading has neither label nor number."""
        try:
            self.label(fields[split.label - 1], "") if split.label else numbers(fields[0], "")
        except DataError:
            return
        raise DataError(
            f"{place(path, line)} is an example, but the files of {self.task.name} begin with a line that names the columns,"
            " which is passed over; put that line back (any words, separated by tabs)"
        )

    def _columns(self, path: Path, line: int, found: int, split: GlueSplit) -> int:
        if found < max(*split.texts, split.label):
            label = f" and the label in column {split.label}" if split.label else ""
            raise DataError(
                f"{place(path, line)} has {found} columns separated by tabs, but {self.task.name} has its texts in"
                f" column {', '.join(map(str, split.texts))}{label}"
            )
        return found
