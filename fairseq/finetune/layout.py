"""Writing the layout that the fine-tuning tasks read: ``input0``, ``input1``, ... and ``label``.

A format (`fairseq.finetune.reading`) reads the files of a dataset and gives `Split` objects; `write` makes of them

* ``input{k}/dict.txt``, ``input{k}/{split}.bin`` and ``.idx``: text k of every example, encoded and binarized by the
  code of ``fairseq-preprocess``;
* ``label/``: classes as a dictionary sorted by their frequency in training, with ``{split}.bin`` and ``.idx``, or,
  for numbers, ``{split}.label`` as text.

The bytes are those of the original's scripts, for any number of workers. `Sample` judges by the first lines of a file
whether texts, encoder and dictionary belong together.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import build_bpe, symbol_source
from fairseq.data.preprocessing import CorpusWriter, TextFormat
from fairseq.errors import DataError
from fairseq.finetune.reading import check_text, place

LINES = 200
_LEAST = 8  # words that allow a judgement
_SPACE = "\u2581"  # how sentence pieces write a space


class Sample:
    """The first `LINES` texts of ``path``; `check` refuses what would train on nonsense without a sign of it."""

    def __init__(self, path: Path, dictionary: Dictionary, bpe: Any) -> None:
        self._path, self._dictionary, self._bpe = path, dictionary, bpe
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        if len(self._lines) < LINES and line.strip():
            self._lines.append(line)

    def check(self) -> None:
        """Raises DataError for text that is encoded twice or never, and for a dictionary of another encoder."""
        words = [word for line in self._lines for word in line.split()]
        if len(words) < _LEAST:
            return
        if self._bpe is None:
            if self._unknown(words) >= 0.9:
                raise DataError(
                    f"{self._path}: {self._unknown(words):.0%} of the words are not in the dictionary, so this is raw"
                    " text; give the encoder that the dictionary was made with, for example --bpe gpt2"
                )
            return
        what = self._encoded_as(words)
        if what:
            raise DataError(
                f"{self._path} consists of {what}, so it is encoded already and --bpe would encode it twice;"
                " leave --bpe out, or give the raw text"
            )
        pieces = [piece for line in self._lines for piece in self._bpe.encode(line.strip()).split()]
        if pieces and self._unknown(pieces) >= 0.9:
            raise DataError(
                f"{self._path}: {self._unknown(pieces):.0%} of the pieces that --bpe makes are not in the dictionary;"
                " give the dictionary that belongs to this encoder"
            )

    def _unknown(self, words: list[str]) -> float:
        """Fraction of the words that the dictionary does not have."""
        return sum(word not in self._dictionary for word in words) / len(words)

    def _encoded_as(self, words: list[str]) -> str | None:
        digits = [word for word in words if word.isascii() and word.isdigit()]
        if len(digits) >= 0.95 * len(words) and self._unknown(digits) < 0.5:
            return "numbers that are symbols of the dictionary"
        if sum(word.startswith(_SPACE) for word in words) >= 0.3 * len(words):
            return "sentence pieces"
        return None


JOINED = (
    "--init-token 0 --separator-token 2"  # flags for examples that are joined as in pretraining: <s> a </s> </s> b </s>
)
CLASSES = "classes"  # labels are names of classes
SETS = "sets"  # labels are any number of names, separated by spaces
VALUES = "values"  # labels are numbers, kept as text
CHOICES = "choices"  # labels are the numbers of right choices from 0, kept as text


@dataclass(frozen=True)
class Example:
    """The texts of one example and its label (None: this split has none), with the ``line`` they came from.

    ``path``: the file, where a split has several.
    """

    line: int
    texts: tuple[str, ...]
    label: str | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Split:
    """``name`` on disk (train, valid, valid1, test, ...), the file it is in, and the examples, read once.

    ``text_paths`` and ``label_path`` are for messages about datasets that keep every column in a file of its own.
    """

    name: str
    path: Path
    examples: Iterable[Example]
    text_paths: tuple[Path, ...] = ()
    label_path: Path | None = None

    def label_place(self, example: Example) -> str:
        return place(example.path or self.label_path or self.path, example.line)

    def text_place(self, example: Example, number: int) -> str:
        """Where text ``number`` of an example is; which of several it is when they share the line."""
        if self.text_paths:
            return place(self.text_paths[number], example.line)
        where = place(example.path or self.path, example.line)
        return where if len(example.texts) == 1 else f"{where}, text {number + 1}"


@dataclass
class SplitSummary:
    """What was written for one split: tokens (ends of texts included) and unknown ones of all inputs together."""

    name: str
    path: Path
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    labels: Counter[str] = field(default_factory=Counter)


@dataclass
class Written:
    """What a format wrote, for the table that the command prints.

    ``notes`` are sentences about oddities; ``train_with`` are the flags of ``fairseq-train`` for such data.
    """

    splits: list[SplitSummary] = field(default_factory=list)
    kind: str = CLASSES
    notes: list[str] = field(default_factory=list)
    train_with: str = ""


@dataclass
class Job:
    """What a format is asked to do.

    ``data_dir`` is read and the (empty, existing) directory ``dest`` is filled; the command publishes it afterwards.
    ``settings``: of a subword encoder, None when the texts consist of symbols of ``dictionary``; ``bpe`` is the encoder,
    built when first asked for. ``variant``: what follows the slash of ``--task``. ``options``: the format's own.
    ``label_dictionary``: the classes of a model that exists already, instead of counting them. ``keep_empty``: an
    example may have an empty text beside others.
    """

    data_dir: Path
    dest: Path
    dictionary: Dictionary
    settings: Any = None
    workers: int = 1
    variant: str = ""
    options: Any = None
    keep_empty: bool = False
    label_dictionary: Dictionary | None = None
    progress: Callable[[str, int], Any] | None = None

    @cached_property
    def bpe(self) -> Any:
        """The encoder (``encode(str) -> str`` of symbols), or None."""
        return build_bpe(self.settings)


def write(job: Job, splits: Iterable[Split], kind: str = CLASSES, keep_empty: bool = False) -> Written:
    """Read ``splits`` once and fill ``job.dest``. ``keep_empty``: of this dataset, as if the job said it.

    Raises DataError, naming file and line, for an example with another number of texts or without its label, for an
    empty text (unless ``job.keep_empty``) and for a class that training does not have; and for texts that are encoded
    already while there is an encoder, or that are not while there is none.
    """
    written = Written(kind=kind)
    with tempfile.TemporaryDirectory(dir=job.dest, prefix=".scratch-") as scratch:
        texts = _Texts(job, Path(scratch), kind, keep_empty or job.keep_empty)
        for split in splits:
            written.splits.append(texts.add(split, written.notes))
        if not written.splits:
            raise DataError(f"nothing to read in {job.data_dir}")
        _write_inputs(job, texts, written, scratch)
        if kind in (CLASSES, SETS):
            _write_classes(job, texts, written, scratch)
        else:
            _write_values(job, texts, written)
    return written


class _Texts:
    """The columns of every split as files of one text a line, in ``scratch``."""

    def __init__(self, job: Job, scratch: Path, kind: str, keep_empty: bool) -> None:
        self._job, self._scratch, self._kind, self._keep_empty = job, scratch, kind, keep_empty
        self.inputs = 0  # texts of an example, known after the first
        self.first_seen: dict[tuple[str, str], str] = {}  # (split, label) -> place

    def file(self, split: str, column: str) -> Path:
        return self._scratch / f"{split}.{column}"

    def add(self, split: Split, notes: list[str]) -> SplitSummary:
        """Write the columns of ``split``."""
        examples = iter(split.examples)
        first = next(examples, None)
        if first is None:
            raise DataError(f"{split.path} has no examples")
        self.inputs = self.inputs or len(first.texts)
        summary = SplitSummary(split.name, split.path)
        sample = Sample(split.path, self._job.dictionary, self._job.bpe)
        empty: list[str] = []
        with ExitStack() as stack:
            *inputs, labels = (
                stack.enter_context(self.file(split.name, column).open("w", encoding="utf-8", newline="\n"))
                for column in (*(f"input{k}" for k in range(self.inputs)), "label")
            )
            for example in chain([first], examples):
                self._check(split, example, empty)
                self._count_label(split, example, summary)
                for handle, text in zip(inputs, example.texts, strict=True):
                    line = text.replace("\r", " ").replace("\n", " ")
                    handle.write(line + "\n")
                    sample.add(line)
                if example.label is not None:
                    labels.write(example.label + "\n")
                summary.rows += 1
        sample.check()
        if empty:
            notes.append(f"{len(empty)} examples of {split.name} have an empty text, the first in {empty[0]}")
        return summary

    def _check(self, split: Split, example: Example, empty: list[str]) -> None:
        found = len(example.texts)
        if found != self.inputs:
            where = place(example.path or split.path, example.line)
            raise DataError(f"{where}: this example has {found} texts, but the first has {self.inputs}")
        for number, text in enumerate(example.texts):
            check_text(text, split.text_place(example, number))
        bare = [number for number, text in enumerate(example.texts) if not text or text.isspace()]
        if not bare:
            return
        where = split.text_place(example, bare[0])
        if len(bare) == found or not self._keep_empty:
            also = "" if len(bare) == found else ", or keep examples with one empty text with --keep-empty"
            raise DataError(f"{where}: the text is empty; remove the example{also}")
        empty.append(where)

    def _count_label(self, split: Split, example: Example, summary: SplitSummary) -> None:
        """Labels are counted as they are written: ``a b`` is one set of classes in the table."""
        if (example.label is None) != (not summary.labels) and summary.rows:
            raise DataError(
                f"{split.label_place(example)}: this line has {'no' if example.label is None else 'a'} label,"
                " unlike those before it"
            )
        if example.label is not None:
            if self._kind == CLASSES and len(example.label.split()) > 1:
                raise DataError(
                    f"{split.label_place(example)}: expected one label, but found {example.label!r}; a label has no spaces"
                    " (several labels per line: --multi-label)"
                )
            if not example.label.strip() and self._kind != SETS:
                raise DataError(f"{split.label_place(example)}: the label is missing")
            summary.labels[example.label] += 1
            self.first_seen.setdefault((split.name, example.label), split.label_place(example))


def _write_inputs(job: Job, texts: _Texts, written: Written, scratch: str) -> None:
    source = None if job.bpe is None else symbol_source(job.bpe)
    writer = CorpusWriter(TextFormat(job.settings), job.workers, scratch, progress=job.progress, source=source)
    for k in range(texts.inputs):
        folder = job.dest / f"input{k}"
        folder.mkdir()
        job.dictionary.save(folder / "dict.txt")
        for split in written.splits:
            summary = writer.write(str(texts.file(split.name, f"input{k}")), str(folder / split.name), job.dictionary)
            split.tokens += summary.num_tok
            split.unknown += summary.num_replaced


def _write_classes(job: Job, texts: _Texts, written: Written, scratch: str) -> None:
    """A dictionary of the classes of the training split (or the first that has any), and the classes of every split."""
    labelled = [split for split in written.splits if split.labels]
    if not labelled and job.label_dictionary is None:
        return
    dictionary = job.label_dictionary or count_classes(labelled[0].labels)
    if labelled and labelled[0].name != "train" and job.label_dictionary is None:
        written.notes.append(
            f"there is no training split, so classes are numbered by their frequency in {labelled[0].path};"
            " for a model trained elsewhere give its label/dict.txt with --label-dict"
        )
    folder = job.dest / "label"
    folder.mkdir()
    dictionary.save(folder / "dict.txt")
    writer = CorpusWriter(TextFormat(), job.workers, scratch)
    for split in labelled:
        for label in split.labels:
            for name in label.split():
                source = "label dictionary" if job.label_dictionary else "training data"
                check_class(name, dictionary, texts.first_seen[split.name, label], source)
        writer.write(str(texts.file(split.name, "label")), str(folder / split.name), dictionary)


def check_class(name: str, dictionary: Dictionary, where: str, source: str) -> None:
    """Raise DataError, saying ``where``, for a label that is none of the classes in ``dictionary``, made of ``source``."""
    found = dictionary.indices.get(name, -1)
    if found >= dictionary.nspecial:
        return
    if found >= 0:
        raise DataError(
            f"{where}: the label {name!r} is one of the special symbols that every dictionary has"
            f" ({', '.join(dictionary.symbols[: dictionary.nspecial])}); give the class another name"
        )
    known = [word for word in dictionary.symbols[dictionary.nspecial :] if not word.startswith("madeupword")]
    raise DataError(
        f"{where}: the label {name!r} is not among those of the {source} ({', '.join(known)}); classes that training does"
        " not have may stand in a label/dict.txt for --label-dict"
    )


def count_classes(labels: Counter[str], padding_factor: int = 8) -> Dictionary:
    """The dictionary of the classes in ``labels`` (each one class, or several with spaces between them)."""
    dictionary = Dictionary()
    for label, count in labels.items():
        for name in label.split():
            dictionary.add_symbol(name, count)
    dictionary.finalize(padding_factor=padding_factor)
    return dictionary


def _write_values(job: Job, texts: _Texts, written: Written) -> None:
    folder = job.dest / "label"
    for split in written.splits:
        if split.labels:
            folder.mkdir(exist_ok=True)
            os.replace(texts.file(split.name, "label"), folder / f"{split.name}.label")
