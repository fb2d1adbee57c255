"""`BaseWrapperDataset`: a data set that hands everything on to the one it wraps; the base of all wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.utils.data
from torch.utils.data.dataloader import default_collate

from fairseq.data.fairseq_dataset import FairseqDataset


class BaseWrapperDataset(FairseqDataset):
    """Override what changes; the rest comes from ``dataset``.

    ``sizes``, ``size`` and ``num_tokens`` come from the wrapped data set too, so a wrapper that changes lengths
    overrides all three.
    """

    def __init__(self, dataset: torch.utils.data.Dataset) -> None:
        super().__init__()
        self.dataset: Any = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: list[Any]) -> Any:
        if hasattr(self.dataset, "collater"):
            return self.dataset.collater(samples)
        return default_collate(samples)

    @property
    def sizes(self) -> Any:
        return self.dataset.sizes

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.dataset.num_tokens_vec(indices)

    def size(self, index: int) -> Any:
        return self.dataset.size(index)

    def ordered_indices(self) -> np.ndarray:
        return self.dataset.ordered_indices()

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def attr(self, attr: str, index: int) -> Any:
        return self.dataset.attr(attr, index)

    def prefetch(self, indices: Any) -> None:
        self.dataset.prefetch(indices)

    def get_batch_shapes(self) -> list[tuple[int, int]] | None:
        return self.dataset.get_batch_shapes()

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return getattr(self.dataset, "can_reuse_epoch_itr_across_epochs", True)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
