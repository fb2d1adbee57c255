"""Datasets as plugins of the original use them: overridden methods, sizes of every form, settings as attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairseq.data import (
    BaseWrapperDataset,
    ConcatDataset,
    FairseqDataset,
    IdDataset,
    ListDataset,
    MaskTokensDataset,
    NestedDictionaryDataset,
    PrependTokenDataset,
    ResamplingDataset,
    RightPadDataset,
    SortDataset,
    TokenBlockDataset,
)
from fairseq.errors import ConfigError, OutOfScopeError
from tests.common import tiny_dictionary

SIZES = [3, 1, 4, 2]


def sentences(sizes: list[int] = SIZES) -> ListDataset:
    return ListDataset([torch.arange(10, 10 + size) for size in sizes], np.array(sizes))


def nested(sizes: list[int] = SIZES, kind: type[NestedDictionaryDataset] = NestedDictionaryDataset) -> Any:
    tokens = sentences(sizes)
    return kind({"id": IdDataset(), "tokens": RightPadDataset(tokens, 1)}, sizes=[tokens.sizes])


def cut(dataset: Any, **limits: int) -> list[list[int]]:
    return [batch.tolist() for batch in dataset.batch_by_size(dataset.ordered_indices(), **limits)]


class Heavier(NestedDictionaryDataset):
    """Every item counts ten tokens more."""

    def num_tokens(self, index):  # type: ignore[no-untyped-def]
        return 10 + super().num_tokens(index)


class Pairs(NestedDictionaryDataset):
    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):  # type: ignore[no-untyped-def, override]
        return [np.array(indices[i : i + 2]) for i in range(0, len(indices), 2)]

    def filter_indices_by_size(self, indices, max_sizes):  # type: ignore[no-untyped-def]
        return indices[:-1], indices[-1:]


class Shapes(NestedDictionaryDataset):
    def get_batch_shapes(self):  # type: ignore[no-untyped-def]
        return [(8, 4)]


def test_num_tokens_of_a_subclass_counts() -> None:
    order = [np.arange(4)]
    assert cut(SortDataset(nested(), order), max_tokens=12) == [[0, 1, 2], [3]]
    assert cut(nested(kind=Heavier), max_tokens=28) == [[0, 1], [2, 3]]
    assert cut(SortDataset(nested(kind=Heavier), order), max_tokens=28) == [[0, 1], [2, 3]]

    class Wider(SortDataset):
        def num_tokens(self, index):  # type: ignore[no-untyped-def]
            return 20

    assert cut(Wider(nested(), order), max_tokens=40) == [[0, 1], [2, 3]]
    assert ResamplingDataset(nested(kind=Heavier), size_ratio=2.0, seed=1).num_tokens_vec(np.arange(2)).min() > 10


def test_datasets_of_another_base_class() -> None:
    class Foreign(torch.utils.data.Dataset):
        sizes = np.array(SIZES)

        def __len__(self) -> int:
            return 4

        def num_tokens(self, index):  # type: ignore[no-untyped-def]
            return SIZES[index]

        def size(self, index):  # type: ignore[no-untyped-def]
            return SIZES[index]

    wrapped = SortDataset(Foreign(), [np.array(SIZES)])
    assert cut(wrapped, max_tokens=6) == [[1, 3], [0], [2]]
    assert wrapped.filter_indices_by_size(np.arange(4), 2)[0].tolist() == [1, 3]


def test_wrapped_datasets_cut_their_own_batches() -> None:
    wrapped = SortDataset(BaseWrapperDataset(nested(kind=Pairs)), [np.array([3, 2, 1, 0])])
    assert cut(wrapped, max_sentences=3) == [[3, 2], [1, 0]]
    kept, dropped = wrapped.filter_indices_by_size(np.arange(4), 1)
    assert kept.tolist() == [0, 1, 2] and dropped.tolist() == [3]
    with pytest.raises(OutOfScopeError, match="fixed batch shapes"):
        cut(BaseWrapperDataset(nested(kind=Shapes)), max_sentences=3)


def test_wrappers_that_change_sizes_measure_themselves() -> None:
    longer = PrependTokenDataset(sentences(), 0)
    kept, dropped = longer.filter_indices_by_size(np.arange(4), 4)
    assert kept.tolist() == [0, 1, 3] and dropped.tolist() == [2]
    batches = longer.batch_by_size(np.arange(4), max_tokens=8)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2], [3]]


def test_parts_may_be_replaced_and_constructors_left_out() -> None:
    class Told(FairseqDataset):
        epoch = 0

        def __len__(self) -> int:
            return 2

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    class Old(BaseWrapperDataset):
        def __init__(self, dataset):  # type: ignore[no-untyped-def]
            self.dataset = dataset

    first, second = Told(), Told()
    old = Old(first)
    old.set_epoch(2)
    old.dataset = second
    old.set_epoch(3)
    assert (first.epoch, second.epoch) == (2, 3) and old.can_reuse_epoch_itr_across_epochs
    table = nested()
    table.defn["more"] = first
    table.set_epoch(5)
    assert first.epoch == 5


def test_sizes_of_joined_nested_datasets() -> None:
    joined = ConcatDataset([nested([3, 1]), nested([4, 2, 5])])
    assert joined.sizes.tolist() == [3, 1, 4, 2, 5]
    assert joined.ordered_indices().tolist() == [1, 3, 0, 2, 4]
    order = SortDataset(joined, sort_order=[np.arange(5), joined.sizes])
    assert order.ordered_indices().tolist() == [1, 3, 0, 2, 4]
    assert ConcatDataset([nested([3, 1]), nested([4])], [2, 1]).sizes.tolist() == [3, 1, 3, 1, 4]
    pairs = NestedDictionaryDataset({"a": sentences()}, sizes=[np.array(SIZES), np.array(SIZES) + 1])
    assert ConcatDataset([pairs]).sizes.tolist() == SIZES
    assert joined.attr("sizes", 4)[0].tolist() == [4, 2, 5]


def test_sizes_follow_what_is_drawn_in_an_epoch() -> None:
    joined = ConcatDataset([ResamplingDataset(nested(), seed=3), ResamplingDataset(nested(), seed=4)])
    seen = []
    for epoch in (1, 2, 3):
        joined.set_epoch(epoch)
        assert joined.sizes.tolist() == [joined.size(i) for i in range(8)]
        seen.append(joined.sizes.tolist())
    assert len({tuple(sizes) for sizes in seen}) > 1


@pytest.mark.parametrize("form", [np.array, torch.tensor, list, lambda sizes: [torch.tensor(size) for size in sizes]])
def test_token_blocks_of_any_form(form: Any) -> None:
    tensors = [torch.arange(10, 10 + size) for size in SIZES]
    blocks = TokenBlockDataset(tensors, form(SIZES), 4, pad=0, eos=1, break_mode="complete")
    assert [block.tolist() for block in (blocks[0], blocks[1], blocks[2])] == [
        [10, 11, 12, 10],
        [10, 11, 12, 13],
        [10, 11],
    ]
    assert blocks[-1].tolist() == [10, 11] and blocks[-3].tolist() == blocks[0].tolist()
    with pytest.raises(IndexError):
        blocks[-4]
    by_line = TokenBlockDataset(tensors, form(SIZES), None, pad=0, eos=1, break_mode="eos", include_targets=True)
    assert by_line[-1][0].tolist() == [1, 10] and by_line.sizes.tolist() == SIZES
    fixed = TokenBlockDataset(torch.arange(10).view(1, -1), form([10]), 3, pad=0, eos=1)
    assert [fixed[i].tolist() for i in (0, -1)] == [[0, 1, 2], [9]]


def masked(**settings: Any) -> tuple[MaskTokensDataset, MaskTokensDataset]:
    dictionary = tiny_dictionary()
    mask = dictionary.add_symbol("<mask>")
    tokens = ListDataset([torch.arange(4, 40) for _ in range(5)], np.full(5, 36))
    return MaskTokensDataset.apply_mask(tokens, dictionary, pad_idx=1, mask_idx=mask, seed=3, **settings)


def test_settings_of_masks_are_attributes() -> None:
    whole = torch.ones(45, dtype=torch.uint8)
    sources, targets = masked(mask_prob=0.3, leave_unmasked_prob=0.2, mask_whole_words=whole, mask_multiple_length=2)
    for dataset in (sources, targets):
        assert (dataset.mask_prob, dataset.leave_unmasked_prob, dataset.random_token_prob) == (0.3, 0.2, 0.1)
        assert (dataset.pad_idx, dataset.mask_idx, dataset.seed, dataset.epoch) == (1, 44, 3, 0)
        assert dataset.mask_whole_words is whole and len(dataset.vocab) == 45
        assert (dataset.mask_multiple_length, dataset.mask_stdev, dataset.skip_masking) == (2, 0.0, False)
        assert dataset.freq_weighted_replacement is False and dataset.mask_exact is False
    assert not sources.return_masked_tokens and targets.return_masked_tokens
    assert sources.weights[:4].tolist() == [0] * 4 and sources.weights.sum() == pytest.approx(1)
    assert sources.weights[4] == pytest.approx(1 / 41)


def test_changed_settings_hold_for_sources_and_targets() -> None:
    sources, targets = masked(mask_prob=0.1, random_token_prob=0.0)
    few = int(targets[0].ne(1).sum())
    sources.mask_prob = 0.8
    assert targets.mask_prob == 0.8 and int(targets[0].ne(1).sum()) > few + 10
    again, others = masked(mask_prob=0.8, random_token_prob=0.0)
    assert torch.equal(sources[0], again[0]) and torch.equal(targets[0], others[0])
    sources.epoch = 2
    assert not torch.equal(sources[0], again[0])
    again.set_epoch(2)
    assert torch.equal(sources[0], again[0]) and torch.equal(sources[-1], again[4])
    with pytest.raises(ConfigError, match="mask_prob must be above 0"):
        sources.mask_prob = 2.0


def test_a_subclass_with_masks_of_its_own() -> None:
    class Every(MaskTokensDataset):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            item = self.dataset[index]
            if self.return_masked_tokens:
                return item
            return torch.full_like(item, self.mask_idx if self.mask_prob < 1 else self.vocab.pad())

    dictionary = tiny_dictionary()
    mask = dictionary.add_symbol("<mask>")
    tokens = ListDataset([torch.arange(4, 9)], np.array([5]))
    sources, targets = Every.apply_mask(tokens, dictionary, 1, mask)
    assert sources[0].tolist() == [mask] * 5 and targets[0].tolist() == [4, 5, 6, 7, 8]
