"""Sentences for fine-tuning: reading ``DATA/input0``, ``DATA/input1``, ..., joining and shortening them, their order.

Every line of a preprocessed input ends with ``</s>``. With the usual tokens ``<s>`` and ``</s>`` a pair becomes
``<s> a </s> </s> b </s>``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from fairseq.data.attributes import NumelDataset
from fairseq.data.concat_dataset import ConcatDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.pad_dataset import RightPadDataset
from fairseq.data.selection import SortDataset
from fairseq.data.storage import load_indexed_dataset
from fairseq.errors import DataError, DataNotFoundError
from fairseq.rng import legacy_permutation

logger = logging.getLogger(__name__)

_CHECKED_TOKENS = 1 << 22  # tokens checked at a time


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
    """The lines of ``DATA/name/split``, ids checked against ``dictionary``; None when there are no such files.

    With ``combine``, ``split1``, ``split2``, ... follow. Raises DataError naming file and line.
    """
    path = os.path.join(data, name, split)
    lines = load_indexed_dataset(path, dictionary, combine=combine)
    if lines is None:
        return None
    if len(lines) == 0:
        raise DataError(f"{path} holds no lines; preprocess a text that is not empty")
    highest = highest_id(lines)
    if highest >= len(dictionary):
        raise DataError(
            f"{path} holds the id {highest}, but its dictionary has only {len(dictionary)} symbols: it was preprocessed with "
            "another dict.txt"
        )
    return lines


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


def highest_id(lines: Any) -> int:
    """The highest token id of a corpus, read in pieces."""
    if not getattr(lines, "is_contiguous", False):
        return max((int(lines[i].max()) for i in range(len(lines)) if len(lines[i])), default=-1)
    total = int(np.asarray(lines.sizes).sum(dtype=np.int64))
    pieces = (
        lines.read_tokens(start, min(start + _CHECKED_TOKENS, total)) for start in range(0, total, _CHECKED_TOKENS)
    )
    return max((int(piece.max()) for piece in pieces), default=-1)


def place(path: str, lines: Any, index: int) -> str:
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
            where = place(path, inputs[name], int(nowhere.argmax()))
            raise DataError(
                f"{where} is empty, and so the example has no text; remove it from every input and the labels"
            )
        if is_empty.any():
            where = place(path, inputs[name], int(is_empty.argmax()))
            logger.warning("%s is empty (%d such lines)", where, int(is_empty.sum()))


def model_input(tokens: Any, dictionary: Dictionary) -> dict[str, Any]:
    """What the model reads of the examples: ``src_tokens`` (B, T), right-padded, and ``src_lengths`` (B)."""
    return {
        "src_tokens": RightPadDataset(tokens, pad_idx=dictionary.pad()),
        "src_lengths": NumelDataset(tokens, reduce=False),
    }


def in_random_order(dataset: Any, seed: int, no_shuffle: bool) -> Any:
    """``dataset`` in an order drawn from ``seed``, the same for every split and epoch, and not by length."""
    return dataset if no_shuffle else SortDataset(dataset, sort_order=[legacy_permutation(len(dataset), seed)])
