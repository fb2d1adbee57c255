"""Batches by size, filtering, orders, and the flat list they are stored in."""

import numpy as np
import pytest
import torch

from fairseq.compat import data as data_utils_fast
from fairseq.data.batching import (
    Batches,
    OrderedBatches,
    batch_by_size,
    collate_tokens,
    filter_by_size,
    filter_by_size_dynamic,
    lengths_to_mask,
    lengths_to_padding_mask,
)
from fairseq.data.sampling import ResamplingDataset, SortDataset, SubsampleDataset
from fairseq.data.wrappers import ListDataset
from fairseq.errors import ConfigError, DataError
from fairseq.rng import legacy_permutation

TOKENS = [3, 3, 4, 5, 5, 6, 7, 9, 9, 10]


def lengths(tokens, **limits):
    indices = np.arange(len(tokens)) + 100
    batches = batch_by_size(indices, lambda i: tokens[i - 100], **limits)
    assert [i for batch in batches for i in batch] == indices.tolist()
    return [len(batch) for batch in batches]


@pytest.mark.parametrize(
    ("tokens", "limits", "expected"),
    [
        (TOKENS, {"max_tokens": 20}, [4, 2, 2, 2]),
        (TOKENS, {"max_sentences": 4}, [4, 4, 2]),
        (TOKENS, {"max_tokens": 16, "required_batch_size_multiple": 8}, [3, 2, 2, 1, 1, 1]),
        (TOKENS, {"max_sentences": 16, "required_batch_size_multiple": 8}, [8, 2]),
        (TOKENS, {"max_tokens": 40, "max_sentences": 4, "required_batch_size_multiple": 8}, [4, 4, 2]),
        (TOKENS, {}, [10]),
        (TOKENS, {"required_batch_size_multiple": 8}, [8, 2]),
        ([1] * 13, {"max_sentences": 16, "required_batch_size_multiple": 8}, [8, 5]),
        ([1] * 37, {"max_sentences": 10, "required_batch_size_multiple": 8}, [8, 8, 8, 8, 5]),
        ([], {"max_tokens": 5}, []),
    ],
)
def test_batch_lengths(tokens, limits, expected):
    assert lengths(tokens, **limits) == expected


def test_too_long_for_max_tokens():
    with pytest.raises(DataError, match="Sentences lengths should not exceed max_tokens=9"):
        lengths(TOKENS, max_tokens=9)


def test_old_operator_names_return_lists():
    indices, tokens = np.arange(10), np.array(TOKENS)
    by_array = data_utils_fast.batch_by_size_vec(indices, tokens, 20, -1, 1)
    by_function = data_utils_fast.batch_by_size_fn(indices, lambda i: tokens[i], 20, -1, 1)
    assert isinstance(by_array, list) and [batch.tolist() for batch in by_array] == [
        batch.tolist() for batch in by_function
    ]
    assert by_array[0].dtype == np.int64


def test_batches_are_a_sequence_of_views():
    batches = Batches(np.array([4, 2, 7, 1, 0]), np.array([2, 3, 5]))
    assert len(batches) == 3 and [batch.tolist() for batch in batches] == [[4, 2], [7], [1, 0]]
    assert batches[-1].tolist() == [1, 0] and [batch.tolist() for batch in batches[1:]] == [[7], [1, 0]]
    assert np.shares_memory(batches[0], batches.indices)
    with pytest.raises(IndexError):
        _ = batches[3]


def test_ordered_batches_are_lazy_and_have_empty_ones():
    batches = [[1], [2, 3], [4]]
    ordered = OrderedBatches(batches, np.array([2, 0, -1, 1]))
    assert list(ordered) == [[4], [1], [], [2, 3]] and list(ordered[2:]) == [[], [2, 3]] and len(ordered) == 4


def test_order_is_by_size_with_shuffled_ties():
    sizes = np.array([5, 7, 5, 3, 7, 5, 9, 3, 5, 7])
    data = ListDataset(list(range(10)), sizes=sizes)
    shuffle = legacy_permutation(10, 1)
    assert SortDataset(data, [shuffle, sizes]).ordered_indices().tolist() == [3, 7, 0, 5, 2, 8, 4, 9, 1, 6]
    assert SortDataset(data, [shuffle]).ordered_indices().tolist() == [4, 6, 0, 5, 3, 9, 2, 7, 8, 1]
    with pytest.raises(ValueError, match="must hold 10 keys"):
        SortDataset(data, [shuffle[:9]])


def test_filtering_by_array_and_one_by_one_agree():
    sizes = np.array([5, 7, 3, 9])
    indices = np.array([3, 1, 0, 2])
    by_array = ListDataset(list(range(4)), sizes=sizes).filter_indices_by_size(indices, 6)
    by_item = ListDataset(list(range(4)), sizes=sizes.tolist()).filter_indices_by_size(indices, 6)
    for kept, ignored in (by_array, by_item):
        assert kept.tolist() == [0, 2] and ignored.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (5, 5, True),
        (5, None, True),
        ((3, 9), (3, None), True),
        ((4, 9), (3, None), False),
        ((3, 9), 8, False),
        ({"a": 3, "b": 7}, {"a": 3}, True),
        ({"a": 4, "b": 7}, {"a": 3}, False),
        (5, (6, 4), False),
    ],
)
def test_sizes_of_several_parts(size, limit, expected):
    data = ListDataset([0], sizes=[size])
    kept, _ = filter_by_size_dynamic(np.array([0]), data.size, limit)
    assert bool(len(kept)) is expected


def test_too_long_items_can_be_an_error():
    data = ListDataset(list(range(4)), sizes=np.array([5, 7, 3, 9]))
    with pytest.raises(DataError, match=r"#1 is invalid \(=7\) since max_positions=6.*--skip-invalid-size"):
        filter_by_size(np.arange(4), data, 6, raise_exception=True)


def test_collating():
    rows = [torch.tensor([5, 6, 7]), torch.tensor([8])]
    assert collate_tokens(rows, 1).tolist() == [[5, 6, 7], [8, 1, 1]]
    assert collate_tokens(rows, 1, left_pad=True).tolist() == [[5, 6, 7], [1, 1, 8]]
    assert collate_tokens(rows, 1, pad_to_length=4, pad_to_multiple=3).shape == (2, 6)
    assert collate_tokens(rows, 1, pad_to_bsz=3)[2].tolist() == [1, 1, 1]
    rotated = collate_tokens(rows, 1, move_eos_to_beginning=True)
    assert rotated.tolist() == [[7, 5, 6], [8, 1, 1]]
    assert collate_tokens(rows, 1, eos_idx=2, move_eos_to_beginning=True).tolist() == [[2, 5, 6], [2, 1, 1]]


def test_padding_masks():
    mask = lengths_to_padding_mask(torch.tensor([2, 3, 0]))
    assert mask.tolist() == [[False, False, True], [False, False, False], [True, True, True]]
    assert torch.equal(lengths_to_mask(torch.tensor([2, 3, 0])), ~mask)


def test_resampling_is_a_function_of_seed_and_epoch():
    data = ListDataset(list(range(3)), sizes=np.array([20] * 3))
    drawn = ResamplingDataset(data, size_ratio=3.0, seed=1)
    assert [drawn[i] for i in range(len(drawn))] == [0, 1, 2, 2, 2, 1, 0, 1, 0]  # the original's
    drawn.set_epoch(2)
    assert not drawn.can_reuse_epoch_itr_across_epochs
    with pytest.raises(ConfigError, match="size_ratio"):
        ResamplingDataset(data, replace=False, size_ratio=2.0)


def test_subsampling_keeps_a_share_in_order():
    data = ListDataset(list(range(100)), sizes=np.arange(100))
    part = SubsampleDataset(data, 0.25, seed=3)
    values = [part[i] for i in range(len(part))]
    assert len(values) == 25 and values == sorted(set(values)) and part.sizes.tolist() == values
    with pytest.raises(ConfigError, match="size_ratio"):
        SubsampleDataset(data, 1.5)
