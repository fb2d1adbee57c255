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
from pathlib import Path

import numpy as np

from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.data.wrappers import OffsetTokensDataset
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import Job, SplitSummary, Written, check_class, count_classes
from fairseq.finetune.reading import (
    FORMATS,
    ConllConfig,
    check_text,
    find_splits,
    place,
    read_lines,
    read_rows,
    write_row,
)
from fairseq.finetune.words import LabelledSentences, word_pieces
from fairseq.finetune.writing import SplitWriter


def load_conll(directory: str | Path, split: str, labels: Dictionary) -> LabelledSentences:
    """The preprocessed ``split``; ``labels`` numbers the classes.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """
    prefix, label_prefix = (Path(directory) / folder / split for folder in ("input0", "label"))
    for needed in (prefix, label_prefix):
        if not Path(f"{needed}.idx").is_file():
            raise DataNotFoundError(
                f"Dataset not found: {split} ({needed}); make it with fairseq-preprocess-task --task conll"
            )
    sentences, sizes, classes = (MMapIndexedDataset(str(p)) for p in (prefix, f"{prefix}.words", label_prefix))
    if not np.array_equal(sizes.sizes, classes.sizes):
        wrong = int(np.argmax(sizes.sizes != classes.sizes)) if len(sizes) == len(classes) else 0
        raise DataError(
            f"{label_prefix} does not have one label per word (first in sentence {wrong + 1}); preprocess the data again"
        )
    if any(sizes[number].sum() != length for number, length in enumerate(sentences.sizes)):
        raise DataError(f"{prefix}.words does not belong to {prefix}; preprocess the data again")
    words = read_rows(Path(f"{prefix}.jsonl"), len(sentences))
    return LabelledSentences(words, sentences, sizes, OffsetTokensDataset(classes, offset=-labels.nspecial))


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
    written = Written(train_with="--task token_classification --criterion token_classification")
    labels = job.label_dictionary
    files = {
        split: [*(f"{stem}.{ending}" for stem in stems for ending in _ENDINGS), *own]
        for split, (stems, own) in _NAMES.items()
    }
    options = job.options or ConllConfig()
    for split, path in find_splits(job.data_dir, files, _LACKS).items():
        sentences = list(read_columns(path, options.word_column, options.label_column))
        if labels is None:
            counts = Counter(label for sentence in sentences for label in sentence.labels)
            labels = count_classes(counts, padding_factor=1)
            if split != "train":
                written.notes.append(f"there is no training file, so labels are numbered by their frequency in {path}")
        written.splits.append(_write_split(job, split, path, sentences, labels))
    return written


def _write_split(job: Job, split: str, path: Path, found: list[Sentence], labels: Dictionary) -> SplitSummary:
    with SplitWriter(job, split, path) as writer:
        sentences, targets = writer.symbols("input0"), writer.symbols("label", labels, np.uint16)
        sizes, rows = writer.column("input0", ".words"), writer.rows("input0")
        for sentence in found:
            for number, label in enumerate(sentence.labels):
                check_class(label, labels, place(path, sentence.line + number), "training data")
            check_text(" ".join(sentence.words), place(path, sentence.line))
            writer.sample.add(" ".join(sentence.words))
            pieces = word_pieces(job.bpe, sentence.words, job.dictionary.unk_word)
            sentences.add_item(writer.ids([symbol for symbols in pieces for symbol in symbols]))
            sizes.add_item(np.array([len(symbols) for symbols in pieces]))
            targets.add_item(np.array([labels.index(label) for label in sentence.labels]))
            write_row(rows, sentence.words)
            writer.summary.rows += 1
            writer.summary.labels.update(sentence.labels)
    writer.sample.check()
    return writer.summary
