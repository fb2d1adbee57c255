"""Reading CoNLL columns: a word a line with its labels, an empty line after every sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fairseq.data.downstream.reading import place, read_lines
from fairseq.errors import DataError

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
