"""Collating by padding: items of different lengths become one tensor (B, T)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset
from fairseq.data.collating import collate_tokens


class PadDataset(BaseWrapperDataset):
    """Pads with ``pad_idx`` on the left or right, to ``pad_length`` tokens at least."""

    def __init__(self, dataset: Any, pad_idx: int, left_pad: bool, pad_length: int | None = None) -> None:
        super().__init__(dataset)
        self.pad_idx = pad_idx
        self.left_pad = left_pad
        self.pad_length = pad_length

    def collater(self, samples: list[Tensor]) -> Tensor:
        return collate_tokens(samples, self.pad_idx, left_pad=self.left_pad, pad_to_length=self.pad_length)


class LeftPadDataset(PadDataset):
    def __init__(self, dataset: Any, pad_idx: int, pad_length: int | None = None) -> None:
        super().__init__(dataset, pad_idx, left_pad=True, pad_length=pad_length)


class RightPadDataset(PadDataset):
    def __init__(self, dataset: Any, pad_idx: int, pad_length: int | None = None) -> None:
        super().__init__(dataset, pad_idx, left_pad=False, pad_length=pad_length)


class RightPaddingMaskDataset(BaseWrapperDataset):
    """The mask that goes with right padding: bool (B, T), True where there is padding."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros_like(self.dataset[index], dtype=torch.bool)

    def collater(self, samples: list[Tensor]) -> Tensor:
        return collate_tokens(samples, True, left_pad=False)  # type: ignore[arg-type]
