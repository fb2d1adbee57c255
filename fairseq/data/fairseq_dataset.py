"""`FairseqDataset`: what every data set offers to batching, filtering and the iterators."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.utils.data

from fairseq.data.batches import Batches
from fairseq.data.sizing import batch_by_size, filter_by_size_dynamic


class EpochListening:
    """Mixin of data sets that are told when an epoch begins."""

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Whether batches made for one epoch hold for all (they do unless sizes or order change with the epoch)."""
        return True

    def set_epoch(self, epoch: int) -> None:
        """Called with the number of the epoch (from 1) before its first item is read."""


class FairseqDataset(torch.utils.data.Dataset, EpochListening):
    """A map-style data set that knows the size of its items without reading them."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def collater(self, samples: list[Any]) -> Any:
        """Merge ``samples`` (items of this data set) into a batch."""
        raise NotImplementedError

    def num_tokens(self, index: int) -> int:
        """Tokens of item ``index``, as counted against ``--max-tokens``."""
        raise NotImplementedError

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """The same for many items at once; optional (NotImplementedError makes callers ask one by one)."""
        raise NotImplementedError

    def size(self, index: int) -> Any:
        """Size of item ``index`` (a number, or a tuple of them), as filtered by ``max_positions``."""
        raise NotImplementedError

    def ordered_indices(self) -> np.ndarray:
        """All indices in the order in which batches are cut."""
        return np.arange(len(self), dtype=np.int64)

    @property
    def supports_prefetch(self) -> bool:
        return False

    def prefetch(self, indices: Sequence[int]) -> None:
        """Read the given items into memory ahead of use (only if ``supports_prefetch``)."""
        raise NotImplementedError

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Whether items may be read in the main process (for the dummy batch)."""
        return True

    def attr(self, attr: str, index: int) -> Any:
        return getattr(self, attr, None)

    def get_batch_shapes(self) -> list[tuple[int, int]] | None:
        """Fixed (sentences, tokens) shapes of batches; None, the only supported answer: shapes vary."""
        return None

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> Batches:
        """Cut ``indices`` into batches; see `fairseq.data.sizing.batch_by_size`."""
        indices = np.asarray(indices, dtype=np.int64)
        num_tokens_vec: np.ndarray | None = None
        with contextlib.suppress(NotImplementedError):
            num_tokens_vec = np.asarray(self.num_tokens_vec(indices))
        return batch_by_size(
            indices,
            num_tokens_fn=self.num_tokens,
            num_tokens_vec=num_tokens_vec,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, np.ndarray]:
        """Split ``indices`` into those of size at most ``max_sizes`` and the others, both in order."""
        indices = np.asarray(indices, dtype=np.int64)
        sizes = getattr(self, "sizes", None)
        if isinstance(sizes, list) and len(sizes) == 1:
            sizes = sizes[0]
        if isinstance(max_sizes, (int, float)) and isinstance(sizes, np.ndarray) and sizes.ndim == 1:
            fits = sizes[indices] <= max_sizes
            return indices[fits], indices[~fits]
        return filter_by_size_dynamic(indices, self.size, max_sizes)
