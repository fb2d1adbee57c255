"""Small wrappers of datasets: tokens edited, facts beside the tokens, padding, shortening."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.batching import collate_tokens
from fairseq.data.datasets import BaseWrapperDataset, FairseqDataset, SizedDataset
from fairseq.errors import ConfigError
from fairseq.rng import legacy_generator


class _OneMoreToken(SizedDataset, BaseWrapperDataset):
    """Adds ``token`` to every item (not at all if it is None)."""

    def __init__(self, dataset: Any, token: int | None = None) -> None:
        super().__init__(dataset)
        self.token = token
        self._tensor = torch.tensor([] if token is None else [token])
        # An unsigned 16-bit 65535 would wrap to 0.
        self._sizes: np.ndarray = dataset.sizes if token is None else np.asarray(dataset.sizes) + np.int32(1)

    def _like(self, item: Tensor) -> Tensor:
        """The token in the type of ``item``; usually there is nothing to convert."""
        return self._tensor if self._tensor.dtype == item.dtype else self._tensor.to(item.dtype)

    @property
    def sizes(self) -> np.ndarray:  # type: ignore[override]
        return self._sizes


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
    """Items without the ids ``id_to_strip`` at either end. ``sizes`` stay those of the wrapped dataset."""

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


class IdDataset(FairseqDataset):
    """Item i is i; a batch is their int64 tensor (B). Length 0 means "as long as needed" to a nested dataset."""

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
    """Any sequence as a dataset; a batch is the list of its items."""

    def __init__(self, dataset: Any, sizes: Any = None) -> None:
        super().__init__(dataset)
        self._sizes = sizes

    @property
    def sizes(self) -> Any:
        return self._sizes

    def collater(self, samples: list[Any]) -> list[Any]:
        return samples

    def num_tokens(self, index: int) -> int:
        return self._sizes[index]

    def num_tokens_vec(self, indices: Any) -> Any:
        raise NotImplementedError

    def size(self, index: int) -> Any:
        return self._sizes[index]


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

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros_like(self.dataset[index], dtype=torch.bool)

    def collater(self, samples: list[Tensor]) -> Tensor:
        return collate_tokens(samples, True, left_pad=False)  # type: ignore[arg-type]


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
