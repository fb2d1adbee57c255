"""Items cut to a maximal length, at their end or by a random window."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset
from fairseq.errors import ConfigError
from fairseq.rng import legacy_generator


class TruncateDataset(BaseWrapperDataset):
    """The first ``truncation_length`` tokens of each item."""

    def __init__(self, dataset: Any, truncation_length: int) -> None:
        super().__init__(dataset)
        if truncation_length is None or truncation_length < 1:
            raise ConfigError(f"`truncation_length` must be at least 1, but is {truncation_length} instead")
        self.truncation_length = truncation_length

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index][: self.truncation_length]

    @property
    def sizes(self) -> np.ndarray:
        return np.minimum(self.dataset.sizes, self.truncation_length)

    def num_tokens(self, index: int) -> int:
        return min(self.dataset.num_tokens(index), self.truncation_length)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.minimum(np.asarray(self.dataset.sizes)[indices], self.truncation_length)

    def size(self, index: int) -> Any:
        return min(self.dataset.size(index), self.truncation_length)


class RandomCropDataset(TruncateDataset):
    """A window of ``truncation_length`` tokens, drawn from (seed, epoch, index).

    The very last window is never drawn: the original's bound is exclusive, and its numbers are kept.
    """

    def __init__(self, dataset: Any, truncation_length: int, seed: int = 1) -> None:
        super().__init__(dataset, truncation_length)
        self.seed = seed
        self.epoch = 0

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # the window moves, its length does not

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        excess = len(item) - self.truncation_length
        if excess <= 0:
            return item
        start = legacy_generator(self.seed, self.epoch, index).randint(0, excess)
        return item[start : start + self.truncation_length]


def maybe_shorten_dataset(
    dataset: Any, split: str, shorten_data_split_list: str, shorten_method: str, tokens_per_sample: int, seed: int
) -> Any:
    """``dataset`` shortened to ``tokens_per_sample`` if ``split`` is in the comma-separated list, or the list is empty."""
    if shorten_data_split_list and split not in shorten_data_split_list.split(","):
        return dataset
    if shorten_method == "truncate":
        return TruncateDataset(dataset, tokens_per_sample)
    if shorten_method == "random_crop":
        return RandomCropDataset(dataset, tokens_per_sample, seed)
    if shorten_method not in (None, "none"):
        raise ConfigError(f"shorten_method must be none, truncate or random_crop, but is {shorten_method!r} instead")
    return dataset
