"""The labels of sentence tasks, read and checked before training starts: every mistake names its file and line.

Legend: B batch, N examples, K classes.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.attributes import RawLabelDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.sentence_pairs import load_sentences, place
from fairseq.data.token_edits import OffsetTokensDataset, StripTokenDataset
from fairseq.errors import DataError


class MultiHotDataset(RawLabelDataset):
    """Lists of class indices; a batch is float32 (B, K) with ones at them."""

    def __init__(self, labels: list[list[int]], num_classes: int) -> None:
        super().__init__(labels)
        self.num_classes = num_classes

    def collater(self, samples: list[Any]) -> Tensor:
        rows = torch.zeros(len(samples), self.num_classes)
        for row, classes in zip(rows, samples, strict=True):
            row[classes] = 1.0
        return rows


def class_labels(
    data: str,
    split: str,
    dictionary: Dictionary,
    num_classes: int,
    inputs: int,
    combine: bool = False,
    multi_label: bool = False,
) -> Any:
    """Class indices of ``DATA/label/split``: batches int64 (B, 1), or with ``multi_label`` multi-hot float32 (B, K).

    The class index is the row of the label in ``label/dict.txt``. None when the split has no labels (test sets).
    """
    labels = load_sentences(data, "label", split, dictionary, combine)
    if labels is None:
        return None
    path = os.path.join(data, "label", split)
    _check_count(path, len(labels), inputs)
    rows = _rows(labels, dictionary.eos())
    if not multi_label:
        _check_single(rows, labels, path)
    first = dictionary.nspecial
    for index in _foreign_rows(rows, first, first + num_classes):
        symbol = next(int(symbol) for symbol in rows[index] if not first <= symbol < first + num_classes)
        raise DataError(f"{place(path, labels, index)}: {_foreign(symbol, dictionary, num_classes, data)}")
    if multi_label:
        return MultiHotDataset([[int(symbol) - first for symbol in row] for row in rows], num_classes)
    return OffsetTokensDataset(StripTokenDataset(labels, id_to_strip=dictionary.eos()), offset=-first)


def _rows(labels: Any, eos: int) -> Any:
    """The label ids of every line without ``</s>``: a list of lists, or at once (N, 1) when every line has one label."""
    if getattr(labels, "is_contiguous", False) and bool((np.asarray(labels.sizes) == 2).all()):
        pairs = labels.read_tokens(0, 2 * len(labels)).reshape(-1, 2).astype(np.int64)
        if bool((pairs[:, 1] == eos).all()):
            return pairs[:, :1]
    return [[symbol for symbol in labels[i].tolist() if symbol != eos] for i in range(len(labels))]


def _check_single(rows: Any, labels: Any, path: str) -> None:
    for index, row in enumerate([] if isinstance(rows, np.ndarray) else rows):
        if len(row) != 1:
            advice = "; for several labels a line set task.multi_label=true (--multi-label)" if row else ""
            raise DataError(f"{place(path, labels, index)} must hold one label, but holds {len(row)}{advice}")


def _foreign_rows(rows: Any, low: int, high: int) -> list[int]:
    """Indices of the rows with an id outside [low, high)."""
    if isinstance(rows, np.ndarray):
        return np.flatnonzero((rows[:, 0] < low) | (rows[:, 0] >= high)).tolist()
    return [index for index, row in enumerate(rows) if any(not low <= symbol < high for symbol in row)]


def _foreign(symbol: int, dictionary: Dictionary, num_classes: int, data: str) -> str:
    known = ", ".join(dictionary.symbols[dictionary.nspecial : dictionary.nspecial + num_classes])
    file = os.path.join(data, "label", "dict.txt")
    if symbol < dictionary.nspecial:
        return f"the label is not in the dictionary {file} (known: {known}); preprocess the labels with one that has it"
    return (
        f"the label {dictionary[symbol]!r} is number {symbol - dictionary.nspecial + 1} in {file}, but num_classes is "
        f"{num_classes} (known: {known}); set --num-classes to the number of labels"
    )


def regression_targets(data: str, split: str, num_classes: int, inputs: int, combine: bool = False) -> Any:
    """The numbers of ``DATA/label/split.label``, ``num_classes`` a line: batches float32 (B, K). None without a file."""
    if not os.path.isfile(_label_path(data, split)):
        return None
    targets: list[list[float]] = []
    for path, number, line in _label_lines(data, split, combine):
        values = line.split()
        if len(values) != num_classes:
            raise DataError(
                f"{path}: line {number} must hold {num_classes} number(s) (num_classes), but is {line!r}, which has "
                f"{len(values)}"
            )
        targets.append([_number(value, path, number) for value in values])
    _check_count(_label_path(data, split), len(targets), inputs)
    return RawLabelDataset(targets)


def choice_labels(data: str, split: str, num_classes: int, inputs: int, combine: bool = False) -> Any:
    """The number of the right choice, from 0, on every line of ``DATA/label/split.label``: batches int64 (B)."""
    if not os.path.isfile(_label_path(data, split)):
        return None
    labels: list[int] = []
    for path, number, line in _label_lines(data, split, combine):
        if not line.isdigit() or int(line) >= num_classes:
            raise DataError(
                f"{path}: line {number} must be the number of a choice, 0 to {num_classes - 1}, but is {line!r}"
            )
        labels.append(int(line))
    _check_count(_label_path(data, split), len(labels), inputs)
    return RawLabelDataset(labels)


def _number(text: str, path: str, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{path}: line {line}: the regression label {text!r} is not a number") from None
    if not math.isfinite(value):
        raise DataError(f"{path}: line {line}: the regression label {text!r} is not finite")
    return value


def _label_path(data: str, split: str) -> str:
    return os.path.join(data, "label", f"{split}.label")


def _label_lines(data: str, split: str, combine: bool) -> Any:
    """(path, line number from 1, stripped line) of the split's label file and, with ``combine``, its numbered parts."""
    part = 0
    while os.path.isfile(path := _label_path(data, f"{split}{part or ''}")):
        with open(path, encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                yield path, number, line.strip()
        part += 1
        if not combine:
            return


def _check_count(path: str, labels: int, inputs: int) -> None:
    if labels != inputs:
        kind = "fewer" if labels < inputs else "more"
        raise DataError(
            f"{path} has {labels} labels, {kind} than the {inputs} lines of input0: line k labels example k"
        )
