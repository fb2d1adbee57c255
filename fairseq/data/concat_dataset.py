"""Several datasets as one: end to end (`ConcatDataset`), or item by item side by side (`ConcatSentencesDataset`)."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data.dataloader import default_collate

from fairseq.data.datasets import CompositeDataset


class ConcatDataset(CompositeDataset):
    """``datasets`` one after the other; ``sample_ratios`` repeats each of them a whole number of times."""

    def __init__(self, datasets: Iterable[Any], sample_ratios: int | Sequence[int] = 1) -> None:
        super().__init__(datasets)
        self.datasets = self.parts
        if not self.datasets:
            raise ValueError("`datasets` must hold at least one dataset, but is empty instead")
        ratios = [sample_ratios] * len(self.datasets) if isinstance(sample_ratios, int) else list(sample_ratios)
        self.sample_ratios: list[int] = [int(ratio) for ratio in ratios]
        repeated = zip(self.datasets, self.sample_ratios, strict=True)
        self.cumulative_sizes: list[int] = np.cumsum([ratio * len(part) for part, ratio in repeated]).tolist()
        self.real_sizes: list[int] = [len(part) for part in self.datasets]

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def _place(self, index: int) -> tuple[int, int]:
        """(which dataset, index in it) of item ``index``."""
        part = bisect.bisect_right(self.cumulative_sizes, index)
        before = self.cumulative_sizes[part - 1] if part else 0
        return part, (int(index) - before) % self.real_sizes[part]

    def __getitem__(self, index: int) -> Any:
        part, inner = self._place(index)
        return self.datasets[part][inner]

    def collater(self, samples: list[Any], **extra_args: Any) -> Any:
        if hasattr(self.datasets[0], "collater"):
            return self.datasets[0].collater(samples, **extra_args)
        return default_collate(samples, **extra_args)

    def size(self, index: int) -> Any:
        part, inner = self._place(index)
        return self.datasets[part].size(inner)

    def num_tokens(self, index: int) -> int:
        return int(np.max(self.size(index)))

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Tokens per item, joined once and kept (four bytes an item)."""
        return np.concatenate(
            [np.tile(_sizes(part), ratio) for part, ratio in zip(self.datasets, self.sample_ratios, strict=True)]
        )

    @functools.cached_property
    def _token_ends(self) -> list[int]:
        return np.cumsum([int(part.sizes.sum(dtype=np.int64)) for part in self.datasets]).tolist()

    @property
    def is_contiguous(self) -> bool:
        """Whether `read_tokens` works: every part is contiguous and occurs once."""
        return all(ratio == 1 for ratio in self.sample_ratios) and all(
            getattr(part, "is_contiguous", False) for part in self.datasets
        )

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``[start, stop)`` of the concatenation of all items; a view when they lie in one part."""
        pieces = []
        part = bisect.bisect_right(self._token_ends, start)
        while start < stop and part < len(self.datasets):
            before = self._token_ends[part - 1] if part else 0
            end = min(stop, self._token_ends[part])
            pieces.append(self.datasets[part].read_tokens(start - before, end - before))
            start, part = end, part + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def ordered_indices(self) -> np.ndarray:
        """By size if that is one number an item, else by the first, then the second of two (as the original)."""
        sizes = self.sizes
        if sizes.ndim == 1:
            return np.argsort(sizes)
        return np.lexsort([sizes[:, 1], sizes[:, 0]])

    @property
    def supports_prefetch(self) -> bool:
        return all(getattr(part, "supports_prefetch", False) for part in self.datasets)

    def prefetch(self, indices: Any) -> None:
        start = 0
        for end, part, length in zip(self.cumulative_sizes, self.datasets, self.real_sizes, strict=True):
            if getattr(part, "supports_prefetch", False):
                part.prefetch([(i - start) % length for i in indices if start <= i < end])
            start = end


def _sizes(dataset: Any) -> np.ndarray:
    """The array that measures the items of ``dataset``; a nested dataset has a list of them."""
    return np.asarray(dataset.sizes[0] if isinstance(dataset.sizes, list) else dataset.sizes)


class ConcatSentencesDataset(CompositeDataset):
    """Item i joins item i of every dataset, tensors end to end; all have the same number of items."""

    def __init__(self, *datasets: Any) -> None:
        super().__init__(datasets)
        if len({len(part) for part in datasets}) != 1:
            raise ValueError(
                f"`datasets` must have the same number of items, but have {[len(part) for part in datasets]} instead"
            )
        self.datasets = datasets

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([part[index] for part in self.datasets])

    def __len__(self) -> int:
        return len(self.datasets[0])

    def collater(self, samples: list[Any]) -> Any:
        return self.datasets[0].collater(samples)

    @property
    def sizes(self) -> np.ndarray:
        return sum(part.sizes for part in self.datasets)

    def num_tokens(self, index: int) -> int:
        return sum(part.num_tokens(index) for part in self.datasets)

    def size(self, index: int) -> Any:
        return sum(part.size(index) for part in self.datasets)

    def ordered_indices(self) -> np.ndarray:
        return self.datasets[0].ordered_indices()
