"""Wrappers that change each item's tokens a little: one more or fewer at an end, an offset, a rotation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset


class _OneMoreToken(BaseWrapperDataset):
    """Adds ``token`` to every item (not at all if it is None)."""

    def __init__(self, dataset: Any, token: int | None = None) -> None:
        super().__init__(dataset)
        self.token = token
        self._tensor = torch.tensor([] if token is None else [token])
        self._sizes: np.ndarray = dataset.sizes if token is None else _one_more(dataset.sizes)

    def _like(self, item: Tensor) -> Tensor:
        """The token in the type of ``item``; usually there is nothing to convert."""
        return self._tensor if self._tensor.dtype == item.dtype else self._tensor.to(item.dtype)

    @property
    def sizes(self) -> np.ndarray:
        return self._sizes

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(index) + (self.token is not None)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self._sizes[indices]

    def size(self, index: int) -> Any:
        return self.dataset.size(index) + (self.token is not None)


def _one_more(sizes: Any) -> np.ndarray:
    """``sizes + 1`` in a type wide enough (an unsigned 16-bit 65535 would wrap to 0)."""
    sizes = np.asarray(sizes)
    return sizes + (1 if sizes.dtype.itemsize >= 4 else np.int32(1))


class PrependTokenDataset(_OneMoreToken):
    """``token`` before every item; None: nothing changes."""

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        return item if self.token is None else torch.cat([self._like(item), item])


class AppendTokenDataset(_OneMoreToken):
    """``token`` after every item; None: nothing changes."""

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        return item if self.token is None else torch.cat([item, self._like(item)])


class StripTokenDataset(BaseWrapperDataset):
    """Items without the ids ``id_to_strip`` at either end. ``sizes`` stay those of the wrapped data set."""

    def __init__(self, dataset: Any, id_to_strip: int) -> None:
        super().__init__(dataset)
        self.id_to_strip = id_to_strip

    def __getitem__(self, index: int) -> Tensor:
        item = self.dataset[index]
        kept = (item != self.id_to_strip).nonzero()
        return item[int(kept[0]) : int(kept[-1]) + 1] if len(kept) else item[:0]


class OffsetTokensDataset(BaseWrapperDataset):
    """Items plus ``offset``."""

    def __init__(self, dataset: Any, offset: int) -> None:
        super().__init__(dataset)
        self.offset = offset

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index] + self.offset


class RollDataset(BaseWrapperDataset):
    """Items rotated right by ``shifts``."""

    def __init__(self, dataset: Any, shifts: int) -> None:
        super().__init__(dataset)
        self.shifts = shifts

    def __getitem__(self, index: int) -> Tensor:
        return torch.roll(self.dataset[index], self.shifts)
