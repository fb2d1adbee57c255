"""Iterators that know their length and position: counted, grouped, sharded."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

# The name under which the original logs: people search for "grouped total_num_itrs".
logger = logging.getLogger("fairseq.data.iterators")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class CountingIterator:
    """Counts the elements of ``iterable`` as they are taken.

    Args:
        iterable: anything iterable; iterated only when the first element is asked for.
        start: the position of its first element; default ``iterable.n``, else 0.
        total: the position after the last element; default ``start + len(iterable)``.

    ``n`` is the position of the next element. Elements beyond ``total`` are ignored; IndexError is raised when there
    are fewer.
    """

    def __init__(self, iterable: Any, start: int | None = None, total: int | None = None) -> None:
        self._source = iterable
        self._itr: Iterator[Any] | None = None
        self.n: int = start or int(getattr(iterable, "n", 0))
        self.total: int = total if total is not None else self.n + len(iterable)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> CountingIterator:
        return self

    def __next__(self) -> Any:
        if not self.has_next():
            raise StopIteration
        if self._itr is None:
            # Not before: worker processes start here, and must see the epoch that was set in between.
            self._itr = iter(self._source)
        try:
            element = next(self._itr)
        except StopIteration:
            raise IndexError(
                f"Iterator expected to have length {self.total}, but exhausted at position {self.n}."
            ) from None
        self.n += 1
        if not self.has_next():
            self._itr = iter(())  # lets go of threads and processes behind the source
        return element

    def has_next(self) -> bool:
        return self.n < self.total

    def skip(self, n: int) -> CountingIterator:
        """Take and drop ``n`` elements."""
        for _ in range(n):
            next(self)
        return self

    def take(self, n: int) -> CountingIterator:
        """End at position ``n`` at the latest; the source is told, so that it does not read ahead beyond that."""
        self.total = min(self.total, n)
        if hasattr(self._source, "take"):
            self._source.take(max(n - self.n, 0))
        return self


class GroupedIterator(CountingIterator):
    """Lists of ``chunk_size`` elements of ``iterable`` (the micro-batches of one update).

    The last group may be shorter; with ``skip_remainder_batch`` it is left out, and ``iterable`` ends before it.
    Deliberate deviation: when the position of a resumed ``iterable`` is no multiple of ``chunk_size`` (update_freq was
    changed), the original lost the last elements of that epoch; here all of them are delivered.
    """

    def __init__(self, iterable: Any, chunk_size: int, skip_remainder_batch: bool = False) -> None:
        position, length = getattr(iterable, "n", 0), len(iterable)
        start = ceil_div(position, chunk_size)
        if skip_remainder_batch:
            groups = (length - position) // chunk_size
            logger.info("skip final residual batch, grouped total_num_itrs = %d", start + groups)
        else:
            groups = ceil_div(length - position, chunk_size)
            logger.info("grouped total_num_itrs = %d", start + groups)
        if skip_remainder_batch and hasattr(iterable, "take"):
            iterable.take(position + groups * chunk_size)
        super().__init__(_groups(iterable, chunk_size, skip_remainder_batch), start=start, total=start + groups)
        self.chunk_size = chunk_size


def _groups(iterable: Iterable[Any], size: int, skip_remainder: bool) -> Iterator[list[Any]]:
    iterator = iter(iterable)
    while group := list(itertools.islice(iterator, size)):
        if skip_remainder and len(group) < size:
            return
        yield group


class ShardedIterator(CountingIterator):
    """Elements ``shard_id, shard_id + num_shards, ...``; every shard is filled up to one length with ``fill_value``."""

    def __init__(self, iterable: Any, num_shards: int, shard_id: int, fill_value: Any = None) -> None:
        if not 0 <= shard_id < num_shards:
            raise ValueError(f"shard_id must be between 0 and num_shards ({num_shards}), but is {shard_id} instead")
        length = ceil_div(len(iterable), num_shards)
        own = itertools.islice(iterable, shard_id, len(iterable), num_shards)
        padded = itertools.islice(itertools.chain(own, itertools.repeat(fill_value)), length)
        super().__init__(padded, start=ceil_div(getattr(iterable, "n", 0), num_shards), total=length)
