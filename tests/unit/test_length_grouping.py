"""Batches of similar lengths: little padding, another mix each epoch, the same again from seed, epoch and position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairseq.data.sampling import GroupByLengthDataset
from fairseq.data.wrappers import ListDataset
from fairseq.errors import ConfigError
from fairseq.tasks.configs import SentencePredictionConfig
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.tasks.sentence_task import SentencePredictionTask
from tests.unit.sentences import every_batch, write_split


class Sentences(ListDataset):
    def collater(self, samples):
        return [int(x[0]) for x in samples]


def grouped(count: int = 200, seed: int = 3) -> GroupByLengthDataset:
    lengths = np.clip(np.exp(np.random.RandomState(0).normal(3, 0.6, count)).astype(int), 2, 120)
    items = [torch.full((n,), i) for i, n in enumerate(lengths)]
    return GroupByLengthDataset(Sentences(items, lengths), lengths, seed)


def batches(dataset: GroupByLengthDataset, epoch: int, skip: int = 0) -> list[list[int]]:
    iterator = FairseqTask(None).get_batch_iterator(
        dataset, max_sentences=8, required_batch_size_multiple=1, seed=3, epoch=epoch
    )
    if skip:
        iterator.load_state_dict({"version": 2, "epoch": epoch, "iterations_in_epoch": skip, "shuffle": True})
    return list(iterator.next_epoch_itr())


def padded_share(lengths: np.ndarray, found: list[list[int]]) -> float:
    area = sum(len(batch) * max(lengths[batch]) for batch in found)
    return 1 - lengths.sum() / area


def test_little_padding_and_every_sentence_once():
    dataset = grouped()
    found = batches(dataset, 1)
    assert sorted(i for batch in found for i in batch) == list(range(200))
    at_random = np.random.RandomState(1).permutation(200).reshape(25, 8).tolist()
    assert padded_share(dataset.lengths, found) < 0.12 < 0.4 < padded_share(dataset.lengths, at_random)


def test_order_is_no_curriculum():
    dataset = grouped()
    means = [dataset.lengths[batch].mean() for batch in batches(dataset, 1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_same_seed_and_epoch_same_batches_others_differ():
    first = batches(grouped(), 2)
    assert first == batches(grouped(), 2)
    together = {frozenset(batch) for batch in first}
    for other in (batches(grouped(), 3), batches(grouped(seed=4), 2)):
        assert len(together & {frozenset(batch) for batch in other}) < len(together) / 4


def test_continues_in_the_middle_of_an_epoch():
    assert batches(grouped(), 5, skip=9) == batches(grouped(), 5)[9:]


def test_one_data_set_through_several_epochs():
    dataset, task, iterator, found = grouped(), FairseqTask(None), None, []
    for epoch in (1, 2):
        iterator = task.get_batch_iterator(
            dataset, max_sentences=8, required_batch_size_multiple=1, seed=3, epoch=epoch
        )
        found.append(list(iterator.next_epoch_itr()))
    assert found == [batches(grouped(), 1), batches(grouped(), 2)]


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="`lengths` must be 3 numbers"):
        GroupByLengthDataset(Sentences([torch.ones(2)] * 3, [2, 2, 2]), [2, 2], 1)


def test_option_of_the_sentence_tasks(tmp_path):
    lengths = [1, 4, 1, 3, 2, 4, 2, 3]
    lines = [" ".join(["w01"] * n) for n in lengths]
    for split in ("train", "valid"):
        write_split(tmp_path, split, {"input0": lines}, ["a", "b"] * 4)

    def make(**options):
        config = SentencePredictionConfig(data=str(tmp_path), num_classes=2, init_token=0, seed=1, **options)
        return SentencePredictionTask.setup_task(config)

    task = make(group_by_length=True)
    task.load_dataset("train")
    (batch,) = every_batch(task, "train")
    assert batch["net_input"]["src_lengths"].tolist() == sorted(n + 2 for n in lengths)
    task = make()
    task.load_dataset("train")
    assert not isinstance(task.dataset("train"), GroupByLengthDataset)
    with pytest.raises(ConfigError, match="no_shuffle and group_by_length exclude each other"):
        make(group_by_length=True, no_shuffle=True)
