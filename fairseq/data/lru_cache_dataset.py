"""`LRUCacheDataset`: keeps the last few items read."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset

CAPACITY = 8


class LRUCacheDataset(BaseWrapperDataset):
    """The last 8 items stay in memory, until the epoch changes (items may be functions of the epoch)."""

    def __init__(self, dataset: Any, token: Any = None) -> None:
        super().__init__(dataset)
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, index: int) -> Any:
        key = int(index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        item = self._cache[key] = self.dataset[key]
        if len(self._cache) > CAPACITY:
            self._cache.popitem(last=False)
        return item

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._cache.clear()
