"""Iterators that know their length and position: counted, in groups, of one shard of several."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
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

    @property
    def position(self) -> int:
        """The next element's place among those of all shards; `end` is the place after the last one."""
        return self.n

    @property
    def end(self) -> int:
        return self.total

    def take_group(self, size: int) -> list[Any]:
        """Those of the next ``size`` elements of all shards that belong to this one."""
        return list(itertools.islice(self, size))

    def finish(self) -> None:
        """Leave out what is left."""
        self.take(self.n)

    def take(self, n: int) -> CountingIterator:
        """End at position ``n`` at the latest; the source is told, so that it does not read ahead beyond that."""
        self.total = min(self.total, n)
        if hasattr(self._source, "take"):
            self._source.take(max(n - self.n, 0))
        return self


class GroupedIterator(CountingIterator):
    """Lists of ``chunk_size`` elements of ``iterable`` (the micro-batches of one update).

    The last group may be shorter; with ``skip_remainder_batch`` it is left out, and ``iterable`` ends before it.
    Deliberate deviation: when the position of a resumed ``iterable`` is not a multiple of ``chunk_size`` (update_freq was
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
        super().__init__(_groups(iterable, chunk_size), start=start, total=start + groups)
        self.chunk_size = chunk_size


def _groups(iterable: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(iterable)
    while group := list(itertools.islice(iterator, size)):
        yield group


class GrowingGroups(CountingIterator):
    """This shard's part of groups of ``size(updates())`` batches of all shards: more of them as training goes on.

    What an update reads does not depend on the number of shards; a shard may have one batch less than another, or none.
    ``n`` and ``total`` follow from the sizes of the updates before and after; should an update be skipped, so that a size
    is used twice, they are estimates, and only `has_next` is exact. The last group may be shorter; with
    ``skip_remainder_batch`` it is left out.
    """

    def __init__(
        self,
        iterable: CountingIterator,
        size: Callable[[int], int],
        updates: Callable[[], int],
        skip_remainder_batch: bool = False,
    ) -> None:
        self._batches, self._whole = iterable, skip_remainder_batch
        self._next_size = lambda: size(updates())
        before = _count_groups(
            iterable.position, (size(max(update, 0)) for update in itertools.count(updates() - 1, -1))
        )
        left = iterable.end - iterable.position
        super().__init__(
            self._groups(), start=before, total=before + _count_groups(left, map(size, itertools.count(updates())))
        )

    def _groups(self) -> Iterator[list[Any]]:
        while self.has_next():
            yield self._batches.take_group(self._next_size())

    def has_next(self) -> bool:
        if self._batches.end - self._batches.position >= (self._next_size() if self._whole else 1):
            return True
        self._batches.finish()  # so that the epoch is over for the iterator below too
        return False


def _count_groups(elements: int, sizes: Iterable[int]) -> int:
    """How many groups of ``sizes`` it takes for ``elements``."""
    return next(count for count, covered in enumerate(itertools.accumulate(sizes, initial=0)) if covered >= elements)


class ShardBatches(CountingIterator):
    """Every ``num_shards``-th batch of an epoch from position ``first`` on, counted from ``shard_id``.

    Args:
        iterable: the batches of this shard, an empty one where the last row is not full.
        first, end: positions among the batches of all shards: of the first one, and after the last one.
        whole_rows: do without the last row (a batch for each shard) unless it is full.

    It is read row by row, or in groups that share out any number of batches (`take_group`), not both.
    """

    def __init__(
        self, iterable: Any, first: int, end: int, num_shards: int, shard_id: int, whole_rows: bool = False
    ) -> None:
        start = ceil_div(first, num_shards)
        rows = (end - first) // num_shards if whole_rows else ceil_div(end - first, num_shards)
        super().__init__(iterable, start=start, total=start + rows)
        self._start, self._first, self._end = start, first, end
        self._shards, self._shard = num_shards, shard_id
        self._grouped: int | None = None  # the position after the last group

    @property
    def position(self) -> int:
        if self._grouped is not None:
            return self._grouped
        return min(self._first + (self.n - self._start) * self._shards, max(self._end, self._first))

    @property
    def end(self) -> int:
        return self._end

    def has_next(self) -> bool:
        return super().has_next() if self._grouped is None else self._grouped < self._end

    def take_group(self, size: int) -> list[Any]:
        begin = self.position
        stop = min(begin + size, self._end)
        self._grouped = begin
        group = list(itertools.islice(self, self._before(stop) - self._before(begin)))
        self._grouped = stop
        if not self.has_next():
            self._itr = iter(())
        return group

    def _before(self, position: int) -> int:
        """The number of batches of this shard before ``position``."""
        return max(0, ceil_div(position - self._first - self._shard, self._shards))

    def finish(self) -> None:
        self._grouped = self._end
        self._itr = iter(())


class ShardedIterator(CountingIterator):
    """Elements ``shard_id, shard_id + num_shards, ...``; every shard is filled up to one length with ``fill_value``."""

    def __init__(self, iterable: Any, num_shards: int, shard_id: int, fill_value: Any = None) -> None:
        if not 0 <= shard_id < num_shards:
            raise ValueError(f"shard_id must be between 0 and num_shards ({num_shards}), but is {shard_id} instead")
        length = ceil_div(len(iterable), num_shards)
        own = itertools.islice(iterable, shard_id, len(iterable), num_shards)
        padded = itertools.islice(itertools.chain(own, itertools.repeat(fill_value)), length)
        super().__init__(padded, start=ceil_div(getattr(iterable, "n", 0), num_shards), total=length)
