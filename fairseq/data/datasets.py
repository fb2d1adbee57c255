"""The base classes of datasets.

`FairseqDataset` is what every dataset offers to batching, filtering and the iterators; `BaseWrapperDataset` hands
everything on to the dataset that it wraps; `NestedDictionaryDataset` reads several datasets side by side, and its
batch is a nested dictionary.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch.utils.data
from torch.utils.data.dataloader import default_collate

from fairseq.data.batching import Batches, batch_by_size, filter_by_size_dynamic
from fairseq.overrides import keeps_up, overridden


class FairseqDataset(torch.utils.data.Dataset):
    """A map-style dataset that knows the size of its items without reading them."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def collater(self, samples: list[Any]) -> Any:
        """Merge ``samples`` (items of this dataset) into a batch."""
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

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Whether batches made for one epoch hold for all (they do unless sizes or order change with the epoch)."""
        return True

    def set_epoch(self, epoch: int) -> None:
        """Called with the number of the epoch (from 1) before its first item is read."""

    def attr(self, attr: str, index: int) -> Any:
        """An attribute of item ``index``; None where items have none of that name (plugins ask)."""
        return getattr(self, attr, None)

    def get_batch_shapes(self) -> list[tuple[int, int]] | None:
        """Fixed (sentences, tokens) shapes of batches, which TPUs wanted and are refused; None: shapes vary."""
        return None

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> Batches:
        """Cut ``indices`` into batches; see `fairseq.data.batching.batch_by_size`."""
        indices = np.asarray(indices, dtype=np.int64)
        return batch_by_size(
            indices,
            num_tokens_fn=self.num_tokens,
            num_tokens_vec=tokens_of(self, indices),
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
            fixed_shapes=self.get_batch_shapes(),
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


def tokens_of(dataset: Any, indices: np.ndarray) -> np.ndarray:
    """``num_tokens`` of the items ``indices`` of ``dataset``: all at once where it can say so, else one by one."""
    if keeps_up(dataset, "num_tokens_vec", "num_tokens"):
        with contextlib.suppress(NotImplementedError):
            return np.asarray(dataset.num_tokens_vec(indices))
    return np.fromiter((dataset.num_tokens(index) for index in indices), dtype=np.int64, count=len(indices))


class SizedDataset(FairseqDataset):
    """Items that are measured by one array ``sizes``, the tokens of each."""

    sizes: np.ndarray

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices]

    def size(self, index: int) -> int:
        return int(self.sizes[index])


class CompositeDataset(FairseqDataset):
    """A dataset made of ``parts``: it hands on to them what it is told, and can do what they can."""

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        super().__init__()
        self._parts = list(parts)

    @property
    def parts(self) -> Iterable[Any]:
        """The datasets that it is made of now; plugins replace them after the constructor, or call none."""
        return self._parts

    @property
    def supports_prefetch(self) -> bool:
        return any(getattr(part, "supports_prefetch", False) for part in self.parts)

    def prefetch(self, indices: Any) -> None:
        for part in self.parts:
            if getattr(part, "supports_prefetch", False):
                part.prefetch(indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(getattr(part, "can_reuse_epoch_itr_across_epochs", True) for part in self.parts)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for part in self.parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


class BaseWrapperDataset(CompositeDataset):
    """Override what changes; the rest comes from ``dataset``, how batches are cut too.

    ``sizes``, ``size`` and ``num_tokens`` come from the wrapped dataset too, so a wrapper that changes lengths
    overrides all three.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    @property
    def parts(self) -> Iterable[Any]:
        return (self.dataset,)

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

    def attr(self, attr: str, index: int) -> Any:
        return self.dataset.attr(attr, index)

    def num_tokens(self, index: int) -> int:
        return self.dataset.num_tokens(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return tokens_of(self.dataset, indices)

    def size(self, index: int) -> Any:
        return self.dataset.size(index)

    def ordered_indices(self) -> np.ndarray:
        return self.dataset.ordered_indices()

    def get_batch_shapes(self) -> list[tuple[int, int]] | None:
        asked = getattr(self.dataset, "get_batch_shapes", None)
        return None if asked is None else asked()

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> Batches:
        cut = super().batch_by_size if self._measures("num_tokens", "num_tokens_vec") else self.dataset.batch_by_size
        return cut(
            indices,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, np.ndarray]:
        split = super().filter_indices_by_size if self._measures("size") else self.dataset.filter_indices_by_size
        return split(indices, max_sizes)

    def _measures(self, *methods: str) -> bool:
        """Whether items have other sizes than those of the wrapped dataset (or that is none of this project's kind)."""
        return overridden(self, BaseWrapperDataset, "sizes", *methods) or not isinstance(self.dataset, FairseqDataset)


def flatten(value: Any, prefix: str | None = None) -> OrderedDict[str, Any]:
    """Nested dictionaries and lists as one level with dotted keys (``a.b``; list element i: ``a.[i]``), without Nones."""
    if value is None:
        return OrderedDict()
    before = "" if prefix is None else f"{prefix}."
    if isinstance(value, dict):
        parts = [flatten(inner, f"{before}{key}") for key, inner in value.items()]
    elif isinstance(value, list):
        parts = [flatten(inner, f"{before}[{i}]") for i, inner in enumerate(value)]
    else:
        return OrderedDict({prefix or "": value})
    return OrderedDict(pair for part in parts for pair in part.items())


def unflatten(flat: dict[str, Any]) -> OrderedDict[str, Any]:
    """The opposite of `flatten`, except that a list becomes a dictionary (by position, as the original has it)."""
    nested: OrderedDict[str, Any] = OrderedDict()
    for dotted, value in flat.items():
        *path, last = dotted.split(".")
        level = nested
        for key in path:
            is_list = key.startswith("[") and key.endswith("]")
            level = level.setdefault(int(key[1:-1]) if is_list else key, OrderedDict())  # type: ignore[arg-type]
        level[last] = value
    return nested


class NestedDictionaryDataset(CompositeDataset):
    """``defn``: a nested dictionary (lists allowed) of datasets; ``sizes``: the arrays that measure an item.

    Members of length 0 (ids, counts) are as long as the others need; the others must agree.
    """

    def __init__(self, defn: dict[str, Any], sizes: Any = None) -> None:
        super().__init__()
        self.defn = flatten(defn)
        self.sizes = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
        self._length = 0
        for key, member in self.defn.items():
            if not hasattr(member, "__getitem__") or not hasattr(member, "__len__"):
                raise ValueError(f"member {key!r} must be a dataset, but is a {type(member).__name__} instead")
            self._length = self._length or len(member)
            if len(member) not in (0, self._length):
                raise ValueError(
                    f"members must be of one length, but {key!r} has {len(member)} items, not {self._length}"
                )

    @property
    def parts(self) -> Iterable[Any]:
        return self.defn.values()

    def __getitem__(self, index: int) -> OrderedDict[str, Any]:
        return OrderedDict((key, member[index]) for key, member in self.defn.items())

    def __len__(self) -> int:
        return self._length

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A nested dictionary of the members' batches; ``{}`` for no samples (the filler of a short shard)."""
        if len(samples) == 0:
            return {}
        batch: OrderedDict[str, Any] = OrderedDict()
        for key, member in self.defn.items():
            column = [sample[key] for sample in samples]
            try:
                batch[key] = getattr(member, "collater", default_collate)(column)
            except NotImplementedError:
                batch[key] = default_collate(column)
        return unflatten(batch)

    def num_tokens(self, index: int) -> int:
        return max(int(sizes[index]) for sizes in self.sizes)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        if any(sizes is None for sizes in self.sizes):
            raise NotImplementedError
        return np.max([np.asarray(sizes)[indices] for sizes in self.sizes], axis=0)

    def size(self, index: int) -> Any:
        """The item's size: a number, or a tuple when there are several size arrays."""
        return self.sizes[0][index] if len(self.sizes) == 1 else tuple(sizes[index] for sizes in self.sizes)
