"""Old path of all iterators; one file each now."""

from __future__ import annotations

from fairseq.data.buffered_iterator import BufferedIterator
from fairseq.data.counting_iterators import CountingIterator, GroupedIterator, ShardedIterator
from fairseq.data.epoch_batch_iterator import EpochBatchIterating, EpochBatchIterator

__all__ = [
    "BufferedIterator",
    "CountingIterator",
    "EpochBatchIterating",
    "EpochBatchIterator",
    "GroupedIterator",
    "ShardedIterator",
]
