"""Lists of batches that cost two numbers a batch: host memory stays flat however many sentences there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np


class Batches(Sequence[np.ndarray]):
    """Read-only list of batches; each is a view into one flat array of sentence indices.

    Args:
        indices: sentence indices in batching order, int64 (N,).
        ends: where each batch ends in ``indices``, int64 (number of batches,), rising; the last one is N.
    """

    def __init__(self, indices: np.ndarray, ends: np.ndarray) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones count from the end; IndexError when out of range
        return self.indices[self.ends[position - 1] if position else 0 : self.ends[position]]

    def __repr__(self) -> str:
        return f"Batches({len(self.indices)} sentences in {len(self)} batches)"


class OrderedBatches(Sequence[Any]):
    """The batches of one shard and epoch, in order: ``batches[order[0]], batches[order[1]], ...``.

    Args:
        batches: any sequence of batches (never copied).
        order: positions in ``batches``; -1 stands for an empty batch, which fills up a short shard.
    """

    EMPTY = -1

    def __init__(self, batches: Sequence[Any], order: np.ndarray) -> None:
        self.batches = batches
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> OrderedBatches: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return OrderedBatches(self.batches, self.order[index])
        position = int(self.order[index])
        return [] if position == self.EMPTY else self.batches[position]
