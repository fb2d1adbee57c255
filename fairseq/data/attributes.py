"""Data sets of plain facts beside the tokens: indices, lengths, counts, labels, lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset
from fairseq.data.fairseq_dataset import FairseqDataset


class IdDataset(FairseqDataset):
    """Item i is i; a batch is their int64 tensor (B). Length 0 means "as long as needed" to a nested data set."""

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[int]) -> Tensor:
        return torch.tensor([int(sample) for sample in samples])


class NumSamplesDataset(FairseqDataset):
    """Every item is 1; a batch is the number of its sentences."""

    def __getitem__(self, index: int) -> int:
        return 1

    def __len__(self) -> int:
        return 0

    def collater(self, samples: list[int]) -> int:
        return sum(samples)


class NumelDataset(BaseWrapperDataset):
    """The number of elements of each item; a batch is their sum (``reduce``) or their int64 tensor (B)."""

    def __init__(self, dataset: Any, reduce: bool = False) -> None:
        super().__init__(dataset)
        self.reduce = reduce

    def __getitem__(self, index: int) -> int:
        item = self.dataset[index]
        return item.numel() if torch.is_tensor(item) else int(item.size)

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: list[int]) -> int | Tensor:
        return sum(samples) if self.reduce else torch.tensor(samples)


class RawLabelDataset(FairseqDataset):
    """Labels held in a list; a batch is their tensor (B)."""

    def __init__(self, labels: Sequence[Any]) -> None:
        super().__init__()
        self.labels = labels

    def __getitem__(self, index: int) -> Any:
        return self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    def collater(self, samples: list[Any]) -> Tensor:
        return torch.tensor(samples)


class ListDataset(BaseWrapperDataset):
    """Any sequence as a data set; a batch is the list of its items."""

    def __init__(self, dataset: Any, sizes: Any = None) -> None:
        super().__init__(dataset)
        self._sizes = sizes

    @property
    def sizes(self) -> Any:
        return self._sizes

    def __iter__(self) -> Any:
        yield from self.dataset

    def collater(self, samples: list[Any]) -> list[Any]:
        return samples

    def num_tokens(self, index: int) -> int:
        return self._sizes[index]

    def num_tokens_vec(self, indices: Any) -> Any:
        raise NotImplementedError

    def size(self, index: int) -> Any:
        return self._sizes[index]

    def set_epoch(self, epoch: int) -> None:
        """Lists do not change with the epoch."""
