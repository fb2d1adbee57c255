"""Sentences and their labels for fine-tuning: reading ``DATA/input0``, ..., joining, shortening and ordering them.

Every line of a preprocessed input ends with ``</s>``. With the usual tokens ``<s>`` and ``</s>`` a pair becomes ``<s>
a </s> </s> b </s>``. Labels are read and checked before training starts: every mistake names its file and line.

Legend: B batch, N examples, K classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairseq.data.concat_dataset import ConcatDataset, ConcatSentencesDataset
from fairseq.data.datasets import BaseWrapperDataset, NestedDictionaryDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.data.manifest import check_opened_text
from fairseq.data.shards import check_dictionary
from fairseq.data.wrappers import (
    IdDataset,
    NumelDataset,
    OffsetTokensDataset,
    RawLabelDataset,
    RightPadDataset,
    StripTokenDataset,
)
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.reading import numbers, read_lines

logger = logging.getLogger(__name__)


def load_dictionary(path: str, mask: str | None) -> Dictionary:
    """The dictionary at ``path`` with the symbol ``mask`` added. Raises DataNotFoundError."""
    if not os.path.isfile(path):
        raise DataNotFoundError(
            f"dictionary not found: {path}; sentence tasks read DATA/input0, DATA/input1, ... and DATA/label, each as "
            "fairseq-preprocess writes it (with its dict.txt)"
        )
    dictionary = Dictionary.load(path)
    if mask is not None:
        dictionary.add_symbol(mask)
    return dictionary


def load_sentences(data: str, name: str, split: str, dictionary: Dictionary, combine: bool = False) -> Any:
    """The lines of ``DATA/name/split``, which must be made with ``dictionary``; None when there are no such files.

    With ``combine``, ``split1``, ``split2``, ... follow. Raises DataError naming file and line.
    """
    path = os.path.join(data, name, split)
    lines = load_indexed_dataset(path, dictionary, combine=combine)
    if lines is None:
        return None
    if len(lines) == 0:
        raise DataError(f"{path} holds no lines; preprocess a text that is not empty")
    check_dictionary(os.path.join(data, name), dictionary, "the model or of the first input")
    check_ids(path, lines, dictionary)
    return lines


def check_ids(path: str, lines: Any, dictionary: Dictionary) -> None:
    """Raise DataError when ``lines``, those of ``path``, have ids that ``dictionary`` lacks."""
    tokens = all_tokens(lines)
    highest = int(tokens.max()) if len(tokens) else -1
    if highest >= len(dictionary):
        raise DataError(
            f"{path} holds the id {highest}, but its dictionary has only {len(dictionary)} symbols: it was preprocessed with "
            "another dict.txt"
        )


def require_sentences(data: str, name: str, split: str, dictionary: Dictionary, combine: bool = False) -> Any:
    """As `load_sentences`, but raises DataNotFoundError when there are no such files."""
    lines = load_sentences(data, name, split, dictionary, combine)
    if lines is None:
        path = os.path.join(data, name, split)
        raise DataNotFoundError(
            f"Dataset not found: {split} ({path}); the directory {os.path.join(data, name)} must hold {split}.bin and "
            f"{split}.idx as fairseq-preprocess writes them"
        )
    return lines


def all_tokens(lines: Any) -> npt.NDArray[Any]:
    """The ids of all lines, one after the other; without a copy where they lie so in one file."""
    if getattr(lines, "is_contiguous", False):
        return lines.read_tokens(0, int(np.asarray(lines.sizes).sum(dtype=np.int64)))
    return np.concatenate([np.asarray(lines[index]) for index in range(len(lines))])


def line_of(path: str, lines: Any, index: int) -> str:
    """``path: line N`` (from 1) of item ``index``, in the numbered part that it comes from if several are combined."""
    part = 0
    if isinstance(lines, ConcatDataset):
        while index >= lines.cumulative_sizes[part]:
            part += 1
        index -= lines.cumulative_sizes[part - 1] if part else 0
    return f"{path}{part or ''}: line {index + 1}"


def check_same_length(data: str, split: str, inputs: dict[str, Any]) -> None:
    """Raise DataError when the inputs (name -> lines) of a split have not the same number of lines."""
    (first, lines), *others = inputs.items()
    for name, other in others:
        if len(other) != len(lines):
            raise DataError(
                f"{os.path.join(data, name, split)} has {len(other)} lines, but {os.path.join(data, first, split)} has "
                f"{len(lines)}: line k of every input belongs to example k"
            )


def check_not_empty(data: str, split: str, inputs: dict[str, Any]) -> None:
    """Raise DataError for an example without any text; an empty sentence beside others (QQP has some) is a warning."""
    empty = {name: np.asarray(lines.sizes) <= 1 for name, lines in inputs.items()}  # </s> alone
    nowhere = np.logical_and.reduce(list(empty.values()))
    for name, is_empty in empty.items():
        path = os.path.join(data, name, split)
        if nowhere.any():
            where = line_of(path, inputs[name], int(nowhere.argmax()))
            raise DataError(
                f"{where} is empty, and so the example has no text; remove it from every input and the labels"
            )
        if is_empty.any():
            where = line_of(path, inputs[name], int(is_empty.argmax()))
            logger.warning("%s is empty (%d such lines)", where, int(is_empty.sum()))


class TokenTypesDataset(BaseWrapperDataset):
    """0 for the tokens of the first sentence of each item and 1 for those of the second, as far as it was not cut."""

    def __init__(self, tokens: Any) -> None:
        super().__init__(tokens)
        joined = tokens
        while not isinstance(joined, ConcatSentencesDataset) and hasattr(joined, "dataset"):
            joined = joined.dataset
        self.first = joined.datasets[0] if isinstance(joined, ConcatSentencesDataset) else tokens

    def __getitem__(self, index: int) -> Tensor:
        return (torch.arange(len(self.dataset[index])) >= int(self.first.sizes[index])).long()


def model_input(tokens: Any, dictionary: Dictionary, token_types: bool = False) -> dict[str, Any]:
    """What the model reads of the examples: ``src_tokens`` (B, T), right-padded, and ``src_lengths`` (B).

    With ``token_types`` also ``token_type_ids`` (B, T), zero at padding.
    """
    types = {"token_type_ids": RightPadDataset(TokenTypesDataset(tokens), pad_idx=0)} if token_types else {}
    return {
        "src_tokens": RightPadDataset(tokens, pad_idx=dictionary.pad()),
        "src_lengths": NumelDataset(tokens, reduce=False),
        **types,
    }


def input_dataset(
    inputs: Mapping[str, Any], dictionary: Dictionary, sizes: Any, token_types: bool = False
) -> NestedDictionaryDataset:
    """Sequences without targets as batches of ``id`` (B) and, per name in ``inputs``, what the model reads of them."""
    members = {name: model_input(tokens, dictionary, token_types) for name, tokens in inputs.items()}
    return NestedDictionaryDataset({"id": IdDataset(), **members}, sizes=[sizes])


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
    symbols = all_tokens(labels)
    lines = np.repeat(np.arange(len(labels)), labels.sizes)
    real = symbols != dictionary.eos()
    symbols, lines = symbols[real].astype(np.int64) - dictionary.nspecial, lines[real]
    counts = np.bincount(lines, minlength=len(labels))
    if not multi_label and (counts != 1).any():
        index = int((counts != 1).argmax())
        advice = "; for several labels per line set task.multi_label=true (--multi-label)" if counts[index] else ""
        raise DataError(f"{line_of(path, labels, index)} must hold one label, but holds {counts[index]}{advice}")
    foreign = (symbols < 0) | (symbols >= num_classes)
    if foreign.any():
        first = int(foreign.argmax())
        where = line_of(path, labels, int(lines[first]))
        raise DataError(f"{where}: {_foreign(int(symbols[first]), dictionary, num_classes, data)}")
    if multi_label:
        rows = np.split(symbols, counts.cumsum()[:-1])
        return MultiHotDataset([row.tolist() for row in rows], num_classes)
    return OffsetTokensDataset(StripTokenDataset(labels, dictionary.eos()), offset=-dictionary.nspecial)


def _foreign(label: int, dictionary: Dictionary, num_classes: int, data: str) -> str:
    names = dictionary.symbols[dictionary.nspecial :]
    known = ", ".join(names[:num_classes])
    file = os.path.join(data, "label", "dict.txt")
    if label < 0:
        return f"the label is not in the dictionary {file} (known: {known}); preprocess the labels with one that has it"
    return (
        f"the label {names[label]!r} is number {label + 1} in {file}, but num_classes is {num_classes} (known: {known}); "
        "set --num-classes to the number of labels"
    )


def regression_targets(data: str, split: str, num_classes: int, inputs: int, combine: bool = False) -> Any:
    """The numbers of ``DATA/label/split.label``, ``num_classes`` a line: batches float32 (B, K). None without a file."""

    def read(line: str, where: str) -> list[float]:
        count = len(line.split())
        if count != num_classes:
            raise DataError(
                f"{where} must hold {num_classes} number(s) (num_classes), but is {line!r}, which has {count}"
            )
        return numbers(line, where)

    return _label_file(data, split, inputs, combine, read)


def choice_labels(data: str, split: str, num_classes: int, inputs: int, combine: bool = False) -> Any:
    """The number of the right choice, from 0, on every line of ``DATA/label/split.label``: batches int64 (B)."""

    def read(line: str, where: str) -> int:
        if not line.isdecimal() or len(line) > 9 or int(line) >= num_classes:
            raise DataError(f"{where} must be the number of a choice, 0 to {num_classes - 1}, but is {line!r}")
        return int(line)

    return _label_file(data, split, inputs, combine, read)


def _label_file(data: str, split: str, inputs: int, combine: bool, read: Callable[[str, str], Any]) -> Any:
    """``read(line, place)`` of every line of ``DATA/label/split.label``, and with ``combine`` of its numbered parts."""
    first = os.path.join(data, "label", f"{split}.label")
    if not os.path.isfile(first):
        return None
    labels: list[Any] = []
    part, path = 0, first
    while os.path.isfile(path) and (combine or not part):
        check_opened_text(path)
        labels += [read(line.strip(), f"{path}: line {number}") for number, line in read_lines(Path(path))]
        part += 1
        path = os.path.join(data, "label", f"{split}{part}.label")
    _check_count(first, len(labels), inputs)
    return RawLabelDataset(labels)


def _check_count(path: str, labels: int, inputs: int) -> None:
    if labels != inputs:
        kind = "fewer" if labels < inputs else "more"
        raise DataError(
            f"{path} has {labels} labels, {kind} than the {inputs} lines of input0: line k labels example k"
        )
