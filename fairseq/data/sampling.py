"""Which items, and in what order: sorting, subsampling, drawing with replacement, batches of similar lengths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq.data.datasets import BaseWrapperDataset, tokens_of
from fairseq.errors import ConfigError
from fairseq.rng import legacy_generator

logger = logging.getLogger(__name__)


class SortDataset(BaseWrapperDataset):
    """Batches are cut in the order of ``sort_order``: arrays (N), **the last one is the primary key**, ascending.

    ``[shuffle, sizes]`` sorts by size and breaks ties at random.
    """

    def __init__(self, dataset: Any, sort_order: np.ndarray | Sequence[np.ndarray]) -> None:
        super().__init__(dataset)
        self.sort_order = list(sort_order) if isinstance(sort_order, (list, tuple)) else [sort_order]
        wrong = [len(keys) for keys in self.sort_order if len(keys) != len(dataset)]
        if wrong:
            raise ValueError(f"`sort_order` must hold {len(dataset)} keys an array, but one holds {wrong[0]} instead")

    def ordered_indices(self) -> np.ndarray:
        return np.lexsort(self.sort_order)


class _Selected(BaseWrapperDataset):
    """Item i is item ``indices[i]`` of ``dataset``."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        self.indices: np.ndarray = np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sizes(self) -> Any:
        sizes = self.dataset.sizes
        if isinstance(sizes, list):
            return [part[self.indices] for part in sizes]
        return np.asarray(sizes)[self.indices]

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(self.indices[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return tokens_of(self.dataset, self.indices[indices])

    def size(self, index: int) -> Any:
        return self.dataset.size(self.indices[index])

    def prefetch(self, indices: Any) -> None:
        self.dataset.prefetch(self.indices[np.asarray(list(indices), dtype=np.int64)])


class SubsampleDataset(_Selected):
    """A share ``size_ratio`` of the items, at random and in order; ``shuffle`` mixes the batching order too."""

    def __init__(self, dataset: Any, size_ratio: float, shuffle: bool = False, seed: int | None = None) -> None:
        super().__init__(dataset)
        if not 0.0 < size_ratio < 1.0:
            raise ConfigError(f"size_ratio must be above 0 and below 1, but is {size_ratio} instead")
        actual = int(np.ceil(len(dataset) * size_ratio).astype(int))
        draw: Any = np.random if seed is None else legacy_generator(seed)
        self.indices = np.sort(draw.choice(len(dataset), actual, replace=False))
        self.shuffle = shuffle
        logger.info("subsampled dataset from %d to %d (ratio=%s)", len(dataset), actual, size_ratio)

    def ordered_indices(self) -> np.ndarray:
        """By size, ties at random with ``shuffle`` (from the global stream, which the task seeds)."""
        tie_break = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return np.lexsort([tie_break, self.sizes])


class ResamplingDataset(_Selected):
    """``int(len(dataset) * size_ratio)`` items drawn anew each epoch, by ``weights`` or uniformly.

    Args:
        weights: probability of each item, or relative weights; None: uniform.
        replace: whether an item may be drawn twice.
        batch_by_size: whether the batching order is by size.
        seed, epoch: the draw is a function of both.
    """

    def __init__(
        self,
        dataset: Any,
        weights: Sequence[float] | np.ndarray | None = None,
        replace: bool = True,
        size_ratio: float = 1.0,
        batch_by_size: bool = True,
        seed: int = 0,
        epoch: int = 1,
    ) -> None:
        super().__init__(dataset)
        if size_ratio <= 0.0 or (not replace and size_ratio > 1.0):
            raise ConfigError(
                f"size_ratio must be above 0 (at most 1 without replacement), but is {size_ratio} instead"
            )
        self.weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        if self.weights is not None and len(self.weights) != len(dataset):
            raise ValueError(f"`weights` must hold {len(dataset)} numbers, but holds {len(self.weights)} instead")
        self.replace, self.seed = replace, seed
        self.size_ratio = float(size_ratio)
        self.actual_size = int(np.ceil(len(dataset) * self.size_ratio).astype(int))
        self.batch_by_size_order = batch_by_size
        self._epoch: int | None = None
        self.set_epoch(epoch)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return False

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if epoch == self._epoch:
            return
        self._epoch = epoch
        probabilities = None if self.weights is None else self.weights / self.weights.sum()
        # The original's seed: three numbers, of which 42 keeps the stream apart from others of the same seed.
        stream = np.random.RandomState([42, self.seed % 2**32, epoch])
        self.indices = stream.choice(len(self.dataset), self.actual_size, replace=self.replace, p=probabilities)

    def ordered_indices(self) -> np.ndarray:
        if not self.batch_by_size_order:
            return np.arange(len(self))
        return np.lexsort([np.arange(len(self)), self.sizes])


SPREAD = 0.1


class GroupByLengthDataset(BaseWrapperDataset):
    """Batches are cut in the order of the lengths, each first multiplied by a random number from 0.9 to 1.1.

    So neighbours differ by little, yet a sentence meets others in every epoch: the order is a function of lengths,
    seed and epoch alone, and a run continues in the middle of an epoch. The batches themselves are shuffled by the
    epoch iterator, as always.

    Args:
        dataset: the dataset to wrap.
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
