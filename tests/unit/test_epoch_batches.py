"""`EpochBatchIterator`: orders of the original, resuming, epochs as workers see them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq.data import loading
from fairseq.data.datasets import BaseWrapperDataset
from fairseq.data.iterators import EpochBatchIterator, GroupedIterator, GrowingGroups
from fairseq.data.masking import MaskTokensDataset
from fairseq.data.wrappers import ListDataset
from fairseq.ending import ENDING
from fairseq.errors import CheckpointError, DataError, TrainingError
from fairseq.rng import numpy_seed
from tests.common import tiny_dictionary


def iterator(count=10, **options):
    dataset = ListDataset(list(range(count)))
    return EpochBatchIterator(dataset, lambda samples: list(samples), [[i] for i in range(count)], **options)


def order(itr):
    return [batch[0] if batch else None for batch in itr]


def test_orders_of_the_original():
    assert order(iterator().next_epoch_itr()) == [4, 1, 5, 0, 7, 2, 3, 6, 9, 8]
    assert order(iterator(epoch=2).next_epoch_itr()) == [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]
    shards = [order(iterator(num_shards=2, shard_id=i).next_epoch_itr()) for i in range(2)]
    assert shards == [[4, 5, 7, 3, 9], [1, 0, 2, 6, 8]]
    shards = [order(iterator(num_shards=3, shard_id=i).next_epoch_itr()) for i in range(3)]
    assert shards == [[4, 0, 3, 8], [1, 7, 6, None], [5, 2, 9, None]]
    grouped = iterator(num_shards=3, shard_id=0, grouped_shuffling=True).next_epoch_itr()
    assert order(grouped) == [6, 3, 0]


def test_order_is_that_of_shuffling_the_list_of_batches():
    for count in (1, 2, 33, 500):
        batches = [np.array([i, i + 1]) for i in range(count)]
        with numpy_seed(1 + 3):
            np.random.shuffle(batches)
        assert order(iterator(count, epoch=3).next_epoch_itr()) == [batch[0] for batch in batches]


def test_grouped_shuffling_is_that_of_lists_of_lists():
    groups = [[2 * i, 2 * i + 1] for i in range(5)]
    with numpy_seed(2):
        np.random.shuffle(groups)
    for shard in range(2):
        itr = iterator(11, num_shards=2, shard_id=shard, grouped_shuffling=True).next_epoch_itr()
        assert order(itr) == [group[shard] for group in groups]


def test_unshuffled():
    assert order(iterator(4).next_epoch_itr(shuffle=False)) == [0, 1, 2, 3]
    assert order(iterator(4, disable_shuffling=True).next_epoch_itr()) == [0, 1, 2, 3]


def test_curriculum_ends():
    """Not shuffled in the first epochs, shuffled afterwards; with a reused loader never shuffled, as in the original."""
    itr = iterator()
    assert order(itr.next_epoch_itr(shuffle=False)) == list(range(10))
    assert order(itr.next_epoch_itr(shuffle=True)) == [5, 4, 1, 2, 9, 6, 7, 0, 3, 8]
    assert itr.epoch == 2
    itr = iterator(reuse_dataloader=True)
    for _ in range(2):
        assert order(itr.next_epoch_itr(shuffle=False)) == list(range(10))
        assert order(itr.next_epoch_itr(shuffle=True)) == list(range(10))


@pytest.mark.parametrize("buffer_size", [0, 3])
@pytest.mark.parametrize("shards", [1, 3])
def test_resuming_continues_exactly(buffer_size, shards):
    def make():
        return iterator(num_shards=shards, buffer_size=buffer_size)

    whole = order(make().next_epoch_itr())
    first = make()
    running = first.next_epoch_itr()
    for position in range(len(whole)):
        state = first.state_dict()
        batches = {"batches_in_epoch": position * shards} if shards > 1 and position > 0 else {}
        assert state == {"version": 2, "epoch": 1, "iterations_in_epoch": position, "shuffle": True, **batches}
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.iterations_in_epoch == position and resumed.next_epoch_idx == 1
        assert resumed.state_dict() == state
        assert order(resumed.next_epoch_itr()) == whole[position:] and resumed.next_epoch_idx == 2
        next(running)
    assert first.state_dict() == {"version": 2, "epoch": 2, "iterations_in_epoch": 0, "shuffle": True}
    fresh = make()
    fresh.load_state_dict(first.state_dict())
    assert order(fresh.next_epoch_itr()) == order(first.next_epoch_itr())


def test_state_before_the_first_epoch():
    assert iterator(epoch=3).state_dict() == {"version": 2, "epoch": 3, "iterations_in_epoch": 0, "shuffle": True}


def test_resuming_reads_no_skipped_item():
    class Watched(ListDataset):
        def __getitem__(self, index):
            self.seen.append(int(index))
            return super().__getitem__(index)

    dataset = Watched(list(range(10)))
    dataset.seen = []
    itr = EpochBatchIterator(dataset, dataset.collater, [[i] for i in range(10)])
    itr.load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 7, "shuffle": True})
    assert dataset.seen == []
    assert list(itr.next_epoch_itr()) == [[6], [9], [8]] and dataset.seen == [6, 9, 8]


def test_resuming_with_skip_remainder_batch():
    itr = iterator(skip_remainder_batch=True)
    assert len(itr.next_epoch_itr()) == 9
    itr = iterator(skip_remainder_batch=True)
    itr.load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 4, "shuffle": True})
    assert order(itr.next_epoch_itr()) == [7, 2, 3, 6, 9]


def test_resuming_beyond_the_end():
    with pytest.raises(CheckpointError, match=r"consumed 12 batches of epoch 1.*has 10.*--reset-dataloader"):
        iterator().load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 12, "shuffle": True})
    old = iterator()
    old.load_state_dict({"epoch": 1, "iterations_in_epoch": 10})
    assert old.next_epoch_idx == 2 and order(old.next_epoch_itr())[0] == 5


def test_other_batches_each_epoch():
    calls = []

    def sampler(dataset, epoch):
        calls.append(epoch)
        return [[epoch], [epoch + 1]]

    dataset = ListDataset(list(range(10)))
    itr = EpochBatchIterator(dataset, dataset.collater, sampler, disable_shuffling=True)
    assert list(itr.next_epoch_itr()) == [[1], [2]] and list(itr.next_epoch_itr()) == [[2], [3]]
    assert calls == [1, 2]


def test_first_batch_and_empty_data():
    assert iterator().first_batch == [0]
    with pytest.raises(DataError, match="The dataset is empty"):
        _ = iterator(0).first_batch
    assert len(iterator(0)) == 0 and list(iterator(0).next_epoch_itr()) == []
    with pytest.raises(ValueError, match="shard_id"):
        iterator(num_shards=2, shard_id=2)


class Prefetched(ListDataset):
    supports_prefetch = True

    def prefetch(self, indices):
        self.held = sorted(indices)


def prefetched(**options):
    dataset = Prefetched(list(range(10)))
    return EpochBatchIterator(dataset, dataset.collater, [[i] for i in range(10)], **options), dataset


def test_prefetched_data_stays_on_its_rank_when_asked():
    for epoch in (1, 2):
        itr, dataset = prefetched(num_shards=2, shard_id=1, epoch=epoch)
        values = [batch[0] for batch in itr.next_epoch_itr(fix_batches_to_gpus=True)]
        assert dataset.held == sorted(values) == [1, 3, 5, 7, 9]
        expected = [[i] for i in (1, 3, 5, 7, 9)]
        with numpy_seed(1 + epoch + 1):
            np.random.shuffle(expected)
        assert values == [i for (i,) in expected]


@pytest.mark.parametrize("stored", [True, False])
def test_fixed_batches_survive_a_resume(stored):
    whole, _ = prefetched(num_shards=2, shard_id=1)
    running = whole.next_epoch_itr(fix_batches_to_gpus=True)
    next(running)
    state = whole.state_dict()
    assert state.get("fix_batches_to_gpus") is True
    if not stored:  # files of the original do not say it; the configuration does
        del state["fix_batches_to_gpus"]
    resumed, _ = prefetched(num_shards=2, shard_id=1)
    resumed.load_state_dict(state)
    assert list(resumed.next_epoch_itr(fix_batches_to_gpus=True)) == list(running)


class Stamped(BaseWrapperDataset):
    """Items that say which epoch the reader believes in."""

    epoch = 0

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index):
        return (self.epoch, int(index), torch.get_num_threads())


READERS = [
    {"num_workers": 0},
    {"num_workers": 1},
    {"num_workers": 2},
    {"num_workers": 2, "buffer_size": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 0, "persistent_workers": True},
]


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_workers_see_each_epoch_and_use_one_thread(reader):
    dataset = Stamped(list(range(6)))
    itr = EpochBatchIterator(dataset, list, [[i, i + 1] for i in (0, 2, 4)], reuse_dataloader=True, **reader)
    for epoch in (1, 2, 3):
        items = [item for batch in itr.next_epoch_itr() for item in batch]
        assert {item[0] for item in items} == {epoch} and sorted(item[1] for item in items) == list(range(6))
        if reader["num_workers"]:
            assert {item[2] for item in items} == {1}
    # Validation leaves the dataset in the epoch it is in.
    assert {item[0] for batch in itr.next_epoch_itr(set_dataset_epoch=False) for item in batch} == {3}


@pytest.mark.parametrize("reader", READERS[1:5:3], ids=str)
def test_a_resumed_epoch_is_known_to_workers(reader):
    dataset = Stamped(list(range(6)))
    itr = EpochBatchIterator(dataset, list, [[i, i + 1] for i in (0, 2, 4)], **reader)
    itr.load_state_dict({"version": 2, "epoch": 5, "iterations_in_epoch": 1, "shuffle": True})
    assert {item[0] for batch in itr.next_epoch_itr() for item in batch} == {5}


def masks(reader, epochs=2):
    dictionary = tiny_dictionary()
    dictionary.add_symbol("<mask>")
    rows = [torch.tensor([0, *[4 + (i + j) % 40 for j in range(30)], 2]) for i in range(6)]
    sources, _ = MaskTokensDataset.apply_mask(ListDataset(rows, sizes=np.full(6, 32)), dictionary, 1, 44, mask_prob=0.3)
    itr = EpochBatchIterator(sources, torch.stack, [[i, i + 1] for i in (0, 2, 4)], **reader)
    return torch.stack([torch.stack(list(itr.next_epoch_itr(shuffle=False))) for _ in range(epochs)])


@pytest.mark.parametrize("reader", READERS[1:], ids=str)
def test_masks_do_not_depend_on_the_readers(reader):
    expected = masks({"num_workers": 0})
    assert torch.equal(masks(reader), expected) and not torch.equal(expected[0], expected[1])


def test_errors_of_workers_are_one_sentence():
    class Bad(ListDataset):
        def __getitem__(self, index):
            raise DataError("item 3: it is not right")

    dataset = Bad(list(range(2)))
    itr = EpochBatchIterator(dataset, list, [[0], [1]], num_workers=1)
    with pytest.raises(DataError) as caught:
        list(itr.next_epoch_itr())
    assert str(caught.value) == "item 3: it is not right"


class Signalled(ListDataset):
    """Reading it sends a signal to the reader."""

    number = signal.SIGTERM

    def __getitem__(self, index):
        os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


def test_workers_leave_signals_to_their_parent():
    for number in (*ENDING, "SIGINT"):
        dataset = Signalled([1, 2, 3])
        dataset.number = getattr(signal, number)
        itr = EpochBatchIterator(dataset, list, [[0], [1], [2]], num_workers=1)
        assert sorted(sum(itr.next_epoch_itr(), [])) == [1, 2, 3]


def test_a_signal_to_a_worker_that_has_just_been_forked(monkeypatch):
    prepare = loading.leave_signals_to_parent

    def late(worker):
        os.kill(os.getpid(), signal.SIGTERM)
        prepare(worker)

    monkeypatch.setattr(loading, "leave_signals_to_parent", late)
    itr = EpochBatchIterator(ListDataset([1, 2]), list, [[0], [1]], num_workers=2)
    assert sorted(sum(itr.next_epoch_itr(), [])) == [1, 2]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_killed_worker_is_one_sentence():
    dataset = Signalled([1, 2])
    dataset.number = signal.SIGKILL
    itr = EpochBatchIterator(dataset, list, [[0], [1]], num_workers=1)
    with pytest.raises(TrainingError, match="a data worker has ended.*Lower --num-workers"):
        list(itr.next_epoch_itr())


def test_an_epoch_of_groups_counts_as_finished():
    itr = iterator()
    groups = list(GroupedIterator(itr.next_epoch_itr(), 4))
    assert len(groups) == 3 and itr.end_of_epoch() and itr.next_epoch_idx == 2


def updates_read(count, ramp=0, state=None, product=4, **options):
    """What every update of an epoch reads on all shards, and the state after each; ``product``: shards x update_freq."""
    itrs, shards = [], options.pop("num_shards")
    for shard in range(shards):
        itrs.append(iterator(count, num_shards=shards, shard_id=shard, **options))
        if state is not None:
            itrs[-1].load_state_dict(state)
    batches = [itr.next_epoch_itr() for itr in itrs]
    done = [0]
    skip = options.get("skip_remainder_batch", False)

    def size(updates):
        return max(1, -(-product * min(updates, ramp) // ramp))

    if ramp:
        groups = [GrowingGroups(own, size, lambda: done[0], skip) for own in batches]
    else:
        groups = [GroupedIterator(own, product // shards, skip) for own in batches]
    read, states = [], []
    while groups[0].has_next():
        assert all(group.has_next() for group in groups)
        read.append(sorted(i for group in groups for batch in next(group) for i in batch or ()))
        done[0] += 1
        states.append(itrs[0].state_dict())
        assert all(itr.state_dict() == states[-1] for itr in itrs)
        assert all(itr.end_of_epoch() != group.has_next() for itr, group in zip(itrs, groups, strict=True))
    return read, states


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("ramp", [0, 6])
@pytest.mark.parametrize("count", [23, 24, 25, 26])
def test_updates_do_not_depend_on_the_number_of_shards(count, ramp, skip):
    expected, states = updates_read(count, ramp, num_shards=1, skip_remainder_batch=skip)
    for shards in (2, 4):
        read, positions = updates_read(count, ramp, num_shards=shards, skip_remainder_batch=skip)
        assert read == expected
        assert [state.get("batches_in_epoch", 0) for state in positions] == [
            state["iterations_in_epoch"] for state in states
        ]
        if ramp:
            continue  # the size depends on the updates before
        for update, state in enumerate(positions[:-1], start=1):
            for others in (1, 2, 4):  # any number of shards goes on where these stopped
                rest, _ = updates_read(count, ramp, state, num_shards=others, skip_remainder_batch=skip)
                assert rest == expected[update:]


@pytest.mark.parametrize("shards, product", [(3, 3), (3, 6), (1, 5), (2, 8), (5, 5)])
def test_another_size_of_updates_repeats_and_skips_nothing(shards, product):
    for count in (26, 27):
        read, states = updates_read(count, num_shards=2)
        for update, state in enumerate(states[:-1], start=1):
            rest, _ = updates_read(count, state=state, product=product, num_shards=shards)
            assert sorted(sum(read[:update], []) + sum(rest, [])) == list(range(count))


def test_a_state_without_the_batches_of_all_shards_is_that_of_as_many():
    itr = iterator(num_shards=2)
    itr.load_state_dict({"version": 2, "epoch": 1, "iterations_in_epoch": 2, "shuffle": True})
    assert order(itr.next_epoch_itr()) == [7, 3, 9] and itr.batches_in_epoch == 10


def test_a_worker_whose_parent_has_ended_before_it_began_ends(tmp_path: Path):
    """Otherwise it would keep the lock on the save directory for ever."""
    script = """
import multiprocessing, os, sys, time
from pathlib import Path
from fairseq.data.loading import leave_signals_to_parent

def worker(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    Path(sys.argv[1]).write_text(str(os.getpid()))
    leave_signals_to_parent(0)
    time.sleep(60)

multiprocessing.get_context("fork").Process(target=worker, args=(os.getpid(),)).start()
os._exit(0)
"""
    told = tmp_path / "worker"
    words = [sys.executable, "-c", script, str(told)]
    # Its output ends when the last process that holds it has ended.
    subprocess.run(words, check=True, capture_output=True, timeout=40)
    assert told.exists()
