"""`NestedDictionaryDataset`: several data sets read side by side; a batch is a nested dictionary."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from torch.utils.data.dataloader import default_collate

from fairseq.data.fairseq_dataset import FairseqDataset


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


class NestedDictionaryDataset(FairseqDataset):
    """``defn``: a nested dictionary (lists allowed) of data sets; ``sizes``: the arrays that measure an item.

    Members of length 0 (ids, counts) are as long as the others need; the others must agree.
    """

    def __init__(self, defn: dict[str, Any], sizes: Any = None) -> None:
        super().__init__()
        self.defn = flatten(defn)
        self.sizes = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
        self._length = 0
        for key, member in self.defn.items():
            if not hasattr(member, "__getitem__") or not hasattr(member, "__len__"):
                raise ValueError(f"member {key!r} must be a data set, but is a {type(member).__name__} instead")
            self._length = self._length or len(member)
            if len(member) not in (0, self._length):
                raise ValueError(
                    f"members must be of one length, but {key!r} has {len(member)} items, not {self._length}"
                )

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

    @property
    def supports_prefetch(self) -> bool:
        return any(getattr(member, "supports_prefetch", False) for member in self.defn.values())

    def prefetch(self, indices: Any) -> None:
        for member in self.defn.values():
            if getattr(member, "supports_prefetch", False):
                member.prefetch(indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return all(getattr(member, "can_reuse_epoch_itr_across_epochs", True) for member in self.defn.values())

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for member in self.defn.values():
            if hasattr(member, "set_epoch"):
                member.set_epoch(epoch)
