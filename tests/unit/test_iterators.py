"""Iterators: counting, grouping, sharding, buffering."""

import gc
import threading

import pytest

from fairseq.data.iterators import CountingIterator, EpochBatchIterator, GroupedIterator, GrowingGroups, ShardedIterator
from fairseq.data.loading import BufferedIterator
from fairseq.data.wrappers import ListDataset


def check_counting(reference, iterator):
    assert iterator.has_next() and iterator.n == 0
    assert next(iterator) == reference[0] and iterator.n == 1
    assert next(iterator) == reference[1]
    iterator.skip(3)
    assert iterator.n == 5 and next(iterator) == reference[5]
    iterator.skip(2)
    assert iterator.n == 8
    assert list(iterator) == [reference[8], reference[9]]
    assert not iterator.has_next()


def test_counting():
    check_counting(list(range(10)), CountingIterator(list(range(10))))


def test_counting_length_mismatch():
    assert list(CountingIterator(list(range(10)), total=8)) == list(range(8))
    with pytest.raises(IndexError, match="expected to have length 12, but exhausted at position 10"):
        list(CountingIterator(list(range(10)), total=12))


def test_counting_take():
    iterator = CountingIterator(list(range(10))).take(5)
    assert len(iterator) == 5 and list(iterator) == [0, 1, 2, 3, 4]
    iterator = CountingIterator(list(range(10))).take(5)
    assert [next(iterator), next(iterator)] == [0, 1]
    assert next(iterator.skip(2)) == 4 and not iterator.has_next()


def test_counting_opens_its_source_late():
    opened = []

    class Source:
        def __len__(self):
            return 2

        def __iter__(self):
            opened.append(True)
            return iter([1, 2])

    iterator = CountingIterator(Source(), start=3)
    assert (iterator.n, len(iterator), opened) == (3, 5, [])
    assert list(iterator) == [1, 2] and opened == [True]


def test_grouped():
    assert list(GroupedIterator(list(range(10)), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(GroupedIterator(list(range(10)), 5)) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    check_counting(list(GroupedIterator(list(range(30)), 3)), GroupedIterator(list(range(30)), 3))


def test_grouped_continues_where_its_source_stands():
    source = CountingIterator(list(range(4, 10)), start=4)
    groups = GroupedIterator(source, 2)
    assert (groups.n, len(groups)) == (2, 5) and list(groups) == [[4, 5], [6, 7], [8, 9]]
    # After a resume with another update_freq nothing is lost.
    source = CountingIterator(list(range(5, 10)), start=5)
    assert list(GroupedIterator(source, 2)) == [[5, 6], [7, 8], [9]] and not source.has_next()


@pytest.mark.parametrize(("skip", "expected"), [(True, [[0, 1, 2], [3, 4, 5]]), (False, [[0, 1, 2], [3, 4, 5], [6]])])
def test_grouped_remainder(skip, expected):
    source = CountingIterator(list(range(7)))
    groups = GroupedIterator(source, 3, skip_remainder_batch=skip)
    assert len(groups) == len(expected) and list(groups) == expected
    assert not source.has_next()  # so that the epoch counts as finished


def test_grouped_log_line(caplog):
    with caplog.at_level("INFO"):
        GroupedIterator(list(range(10)), 4)
    assert ("fairseq.data.iterators", "grouped total_num_itrs = 3") in [(r.name, r.message) for r in caplog.records]


def test_sharded():
    assert list(ShardedIterator(list(range(10)), 2, 1)) == [1, 3, 5, 7, 9]
    assert list(ShardedIterator(list(range(10)), 3, 0)) == [0, 3, 6, 9]
    assert list(ShardedIterator(list(range(10)), 3, 2)) == [2, 5, 8, None]
    check_counting(list(range(0, 20, 2)), ShardedIterator(list(range(20)), 2, 0))
    with pytest.raises(ValueError, match="shard_id must be between"):
        ShardedIterator([1], 2, 2)


@pytest.mark.parametrize(("size", "skip", "expected"), [(2, True, 1), (2, False, 2), (1, True, 2), (4, True, 0)])
def test_epoch_remainder(size, skip, expected):
    reference = [1, 2, 3]
    batches = [range(3)[start : start + size] for start in range(0, 3, size)]
    dataset = ListDataset(reference)
    iterator = EpochBatchIterator(dataset, dataset.collater, batches, skip_remainder_batch=skip).next_epoch_itr()
    assert len(iterator) == expected == len(list(iterator))


def test_buffered_take():
    buffered = BufferedIterator(2, list(range(10)))
    iterator = CountingIterator(buffered).take(5)
    assert len(iterator) == 5 and list(iterator) == [0, 1, 2, 3, 4]
    buffered = BufferedIterator(2, list(range(10)))
    CountingIterator(buffered).take(5)
    assert len(buffered) == 5 and len(list(buffered)) == 5


def test_buffered_repeats_its_end():
    buffered = BufferedIterator(3, [1])
    assert next(buffered) == 1
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(buffered)


def test_buffered_hands_on_errors():
    class Broken:
        def __len__(self):
            return 3

        def __iter__(self):
            yield 1
            raise KeyError("lost")

    buffered = BufferedIterator(2, Broken())
    assert next(buffered) == 1
    with pytest.raises(KeyError, match="lost"):
        next(buffered)


def test_buffered_thread_ends_when_dropped():
    before = set(threading.enumerate())
    buffered = BufferedIterator(1, range(10**9))
    assert next(buffered) == 0
    (thread,) = set(threading.enumerate()) - before
    del buffered
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("length", [0, 1, 9, 10, 11])
def test_groups_grow_with_the_updates(skip, length):
    """1, 1, 2, 3, 4, 4, 4, ... elements, wherever the iterator begins."""

    def size(updates):
        return min(max(updates, 1), 4)

    elements, whole, start, updates = list(range(length)), [], 0, 0
    while start + (size(updates) if skip else 1) <= length:
        whole.append(elements[start : start + size(updates)])
        start, updates = start + size(updates), updates + 1
    for done in range(max(len(whole), 1)):
        position, trained = sum(map(len, whole[:done])), [None] * done
        batches = CountingIterator(elements[position:], start=position)
        groups = GrowingGroups(batches, size, trained.__len__, skip)
        assert groups.n == done and (skip or groups.total == len(whole))
        for expected in whole[done:]:
            assert groups.has_next() and next(groups) == expected
            trained.append(None)
        assert not groups.has_next()
