"""CoNLL columns, a word per line with its labels: reading them, and the binarized form that ``token_classification`` reads.

For every split, in ``DEST/``:

* ``input0/dict.txt``, ``input0/{split}.bin`` and ``.idx``: pieces of every sentence, without special symbols;
* ``input0/{split}.words.bin`` and ``.idx``: int32, the number of pieces of every word of the sentence;
* ``input0/{split}.jsonl``: the words of every sentence, one list per line;
* ``label/dict.txt``, ``label/{split}.bin`` and ``.idx``: one label per word, without an end symbol.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import Job, Sample, SplitSummary, Written
from fairseq.finetune.reading import FORMATS, ConllConfig, find_splits, place, read_lines, read_rows, write_row
from fairseq.finetune.words import word_pieces
from fairseq.finetune.writing import SplitWriter

Ints = npt.NDArray[np.int64]


class ConllSplit:
    """One split, as the source of a `fairseq.finetune.words.TokenLabelsDataset`.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """

    def __init__(self, directory: str | Path, split: str, labels: Dictionary) -> None:
        self._prefix = Path(directory) / "input0" / split
        label_prefix = Path(directory) / "label" / split
        self._nspecial = labels.nspecial
        for prefix in (self._prefix, label_prefix):
            if not Path(f"{prefix}.idx").is_file():
                raise DataNotFoundError(
                    f"Dataset not found: {split} ({prefix}); make it with fairseq-preprocess-task --task conll"
                )
        self.sentences = MMapIndexedDataset(str(self._prefix))
        self._words = MMapIndexedDataset(f"{self._prefix}.words")
        self._labels = MMapIndexedDataset(str(label_prefix))
        if not np.array_equal(self._words.sizes, self._labels.sizes):
            wrong = (
                int(np.argmax(self._words.sizes != self._labels.sizes)) if len(self._words) == len(self._labels) else 0
            )
            raise DataError(
                f"{label_prefix} does not have one label per word (first in sentence {wrong + 1}); preprocess the data again"
            )
        for sentence in range(len(self.sentences)):
            if self.sizes(sentence).sum() != self.sentences.sizes[sentence]:
                raise DataError(f"{self._prefix}.words does not belong to {self._prefix}; preprocess the data again")

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of every sentence."""
        return read_rows(Path(f"{self._prefix}.jsonl"), len(self.sentences))

    def sizes(self, sentence: int) -> Ints:
        """Pieces of every word (W)."""
        return self._words[sentence].numpy()

    def labels(self, sentence: int) -> Ints | None:
        """The class of every word (W)."""
        return self._labels[sentence].numpy() - self._nspecial


DOCUMENT = "-DOCSTART-"
_SEPARATOR = re.compile("[ \t]+")


@dataclass
class Sentence:
    """Words and their labels (none when they were not asked for), with the line of the first word."""

    line: int
    words: list[str]
    labels: list[str]


def read_columns(path: Path, word_column: int = 0, label_column: int | None = -1) -> Iterator[Sentence]:
    """The sentences of ``path``; lines of ``-DOCSTART-`` are left out.

    Columns are separated by spaces or tabs and counted from 0, negative ones from the end; ``label_column`` None reads
    words alone. Every line must have as many columns as the first one. Raises DataError naming file and line.
    """
    expected: int | None = None
    sentence = Sentence(0, [], [])
    for number, line in read_lines(path):
        columns = _SEPARATOR.split(line.strip(" \t"))
        if columns == [""] or columns[0] == DOCUMENT:
            if sentence.words:
                yield sentence
            sentence = Sentence(0, [], [])
            continue
        if expected is None:
            expected = len(columns)
            for name, column in (("word-column", word_column), ("label-column", label_column)):
                if column is not None and not -expected <= column < expected:
                    raise DataError(
                        f"{place(path, number)}: there is no column {column} among {expected} (counted from 0); choose "
                        f"another --{name}"
                    )
        if len(columns) != expected:
            raise DataError(f"{place(path, number)}: {len(columns)} columns, but the lines before have {expected}")
        sentence.line = sentence.line or number
        sentence.words.append(columns[word_column])
        if label_column is not None:
            sentence.labels.append(columns[label_column])
    if sentence.words:
        yield sentence
    if expected is None:
        raise DataError(f"{path} has no sentences")


_ENDINGS = ("txt", "conll", "bio", "iob", "iob2", "tsv")
_NAMES = {  # split: stems with any of the endings, and the names of CoNLL-2003
    "train": (("train",), ("eng.train",)),
    "valid": (("dev", "valid"), ("eng.testa",)),
    "test": (("test",), ("eng.testb",)),
}
_LACKS = "no files of columns: train.txt, dev.txt, test.txt (or .conll), or eng.train, eng.testa, eng.testb"


@FORMATS.register("conll")
def write_conll(job: Job) -> Written:
    """``train.txt``, ``dev.txt`` (or ``valid.txt``), ``test.txt``; CoNLL-2003's ``eng.train``, ``eng.testa``, ``eng.testb``."""
    written = Written()
    labels = job.label_dictionary
    files = {
        split: [*(f"{stem}.{ending}" for stem in stems for ending in _ENDINGS), *own]
        for split, (stems, own) in _NAMES.items()
    }
    for split, path in find_splits(job.data_dir, files, _LACKS).items():
        if labels is None:
            labels = _count_labels(job, path)
            if split != "train":
                written.notes.append(f"there is no training file, so labels are numbered by their frequency in {path}")
        written.splits.append(_write_split(job, split, path, labels))
    return written


def _options(job: Job) -> ConllConfig:
    return job.options if isinstance(job.options, ConllConfig) else ConllConfig()


def _read(job: Job, path: Path) -> list[Sentence]:
    options = _options(job)
    return list(read_columns(path, options.word_column, options.label_column))


def _count_labels(job: Job, path: Path) -> Dictionary:
    counts = Counter(label for sentence in _read(job, path) for label in sentence.labels)
    labels = Dictionary()
    for label, count in counts.items():
        labels.add_symbol(label, count)
    labels.finalize(padding_factor=1)
    return labels


def _write_split(job: Job, split: str, path: Path, labels: Dictionary) -> SplitSummary:
    summary = SplitSummary(split, path)
    sample = Sample(path, job.dictionary, job.settings is not None)
    with SplitWriter(job.dest, split, job.dictionary) as writer:
        sentences, targets = writer.symbols("input0"), writer.symbols("label", labels, np.uint16)
        sizes, rows = writer.column("input0", ".words"), writer.rows("input0")
        for sentence in _read(job, path):
            for number, label in enumerate(sentence.labels):
                if label not in labels:
                    known = ", ".join(labels.symbols[labels.nspecial :])
                    raise DataError(
                        f"{place(path, sentence.line + number)}: the label {label!r} is not among those of the training "
                        f"data ({known}); give a label/dict.txt that lists them all with --label-dict"
                    )
            sample.add(" ".join(sentence.words))
            pieces = word_pieces(job.bpe, sentence.words, job.dictionary.unk_word)
            sentences.add_item(writer.ids([symbol for found in pieces for symbol in found]))
            sizes.add_item(np.array([len(found) for found in pieces]))
            targets.add_item(np.array([labels.index(label) for label in sentence.labels]))
            write_row(rows, sentence.words)
            summary.rows += 1
            summary.labels.update(sentence.labels)
    sample.check(job.bpe)
    summary.tokens, summary.unknown = writer.tokens, writer.unknown
    return summary
