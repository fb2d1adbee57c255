"""Pairs of consecutive sentences, as BERT reads them: ``A </s> B </s>``.

Nothing is kept but the numbers of the lines that are not empty; sentences stay in the memory-mapped file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.datasets import BaseWrapperDataset, SizedDataset
from fairseq.errors import DataError


class SentencePairDataset(SizedDataset):
    """Lines 1 and 2, 3 and 4, ... of ``lines`` that are not empty, each pair one item, cut after ``longest`` tokens.

    A line is one sentence and ends with </s>, which alone is an empty one; empty lines (the ends of documents) do not keep
    sentences apart. An odd last sentence is left out. Raises DataError when there is no pair.
    """

    def __init__(self, lines: Any, longest: int) -> None:
        super().__init__()
        self.dataset = lines
        self.longest = longest
        sizes = np.asarray(lines.sizes)
        sentences = np.flatnonzero(sizes > 1)
        if len(sentences) < 2:
            raise DataError(f"sentence pairs need at least two sentences, one a line, but there are {len(sentences)}")
        self._sentences = sentences[: len(sentences) // 2 * 2].reshape(-1, 2)
        self.first_sizes = sizes[self._sentences[:, 0]]
        self.sizes = np.minimum(self.first_sizes + sizes[self._sentences[:, 1]], longest).astype(np.int32)

    def __getitem__(self, index: int) -> Tensor:
        return torch.cat([self.dataset[int(line)] for line in self._sentences[index]])[: self.longest]

    def __len__(self) -> int:
        return len(self._sentences)


class PairTypesDataset(BaseWrapperDataset):
    """0 for the tokens of the first sentence of each pair, with what stands ``before`` it and its </s>, 1 for the second."""

    def __init__(self, pairs: SentencePairDataset, before: int) -> None:
        super().__init__(pairs)
        self.before = before

    def __getitem__(self, index: int) -> Tensor:
        first, all_of_it = int(self.dataset.first_sizes[index]), int(self.dataset.sizes[index])
        return (torch.arange(self.before + all_of_it) >= self.before + first).long()
