"""Batches of sentences of similar length, so that little of them is padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset

SPREAD = 0.1


class GroupByLengthDataset(BaseWrapperDataset):
    """Batches are cut in the order of the lengths, each first multiplied by a random number from 0.9 to 1.1.

    So neighbours differ by little, yet a sentence meets others in every epoch: the order is a function of lengths,
    seed and epoch alone, and a run continues in the middle of an epoch. The batches themselves are shuffled by the
    epoch iterator, as always.

    Args:
        dataset: the data set to wrap.
        lengths: tokens of every item (N,).
        seed, epoch: of the random numbers.
    """

    def __init__(self, dataset: Any, lengths: Any, seed: int, epoch: int = 1) -> None:
        super().__init__(dataset)
        self.lengths = np.asarray(lengths)
        if self.lengths.shape != (len(dataset),):
            raise ValueError(f"`lengths` must be {len(dataset)} numbers, but has shape {self.lengths.shape} instead")
        self.seed = seed
        self.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return False

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def ordered_indices(self) -> np.ndarray:
        # A stream apart from those of other uses of the same seed and epoch.
        stream = np.random.RandomState([29, self.seed % 2**32, self.epoch])
        factors = stream.uniform(1 - SPREAD, 1 + SPREAD, len(self.lengths))
        return np.argsort(self.lengths * factors, kind="stable")
