"""Small data-set wrappers, each against what it says it does."""

import numpy as np
import pytest
import torch

from fairseq.compat.data import LRUCacheDataset
from fairseq.data.concat_dataset import ConcatDataset, ConcatSentencesDataset
from fairseq.data.datasets import BaseWrapperDataset, NestedDictionaryDataset
from fairseq.data.wrappers import (
    AppendTokenDataset,
    IdDataset,
    LeftPadDataset,
    ListDataset,
    NumelDataset,
    NumSamplesDataset,
    OffsetTokensDataset,
    PrependTokenDataset,
    RandomCropDataset,
    RawLabelDataset,
    RightPadDataset,
    RightPaddingMaskDataset,
    RollDataset,
    StripTokenDataset,
    TruncateDataset,
    maybe_shorten_dataset,
)
from fairseq.errors import ConfigError

ROWS = [[5, 6, 7], [8], [9, 10]]


def tokens(rows=ROWS):
    return ListDataset([torch.tensor(row) for row in rows], sizes=np.array([len(row) for row in rows]))


def contents(dataset):
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_one_more_token():
    before, after = PrependTokenDataset(tokens(), 0), AppendTokenDataset(tokens(), 2)
    assert contents(before) == [[0, *row] for row in ROWS] and contents(after) == [[*row, 2] for row in ROWS]
    for dataset in (before, after):
        assert dataset.sizes.tolist() == [4, 2, 3] == [dataset.size(i) for i in range(3)]
        assert dataset.num_tokens_vec(np.array([2, 0])).tolist() == [3, 4] and dataset.num_tokens(1) == 2
    assert contents(PrependTokenDataset(tokens(), None)) == ROWS
    narrow = ListDataset([torch.zeros(0)], sizes=np.array([65535], dtype=np.uint16))
    assert PrependTokenDataset(narrow, 0).sizes.tolist() == [65536]


def test_edits():
    assert contents(OffsetTokensDataset(tokens(), -4)) == [[1, 2, 3], [4], [5, 6]]
    assert contents(RollDataset(tokens(), 1)) == [[7, 5, 6], [8], [10, 9]]
    rows = [[2, 2, 5, 2, 6, 2], [2], [7]]
    assert contents(StripTokenDataset(tokens(rows), 2)) == [[5, 2, 6], [], [7]]


def test_padding():
    samples = [tokens()[i] for i in range(3)]
    assert RightPadDataset(tokens(), 1).collater(samples).tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1]]
    assert LeftPadDataset(tokens(), 1, pad_length=4).collater(samples).tolist()[1] == [1, 1, 1, 8]
    mask = RightPaddingMaskDataset(tokens())
    assert mask.collater([mask[i] for i in range(3)]).tolist() == [
        [False] * 3,
        [False, True, True],
        [False, False, True],
    ]


def test_facts():
    assert NumelDataset(tokens()).collater([3, 1]).tolist() == [3, 1]
    assert NumelDataset(tokens(), reduce=True).collater([3, 1]) == 4
    assert NumSamplesDataset().collater([1, 1]) == 2 and len(NumSamplesDataset()) == 0
    assert IdDataset().collater([np.int64(4), 2]).tolist() == [4, 2]
    assert RawLabelDataset([1, 0, 2]).collater([0, 2]).tolist() == [0, 2]
    assert ListDataset(["a", "b"]).collater(["a"]) == ["a"]


def test_truncating():
    data = TruncateDataset(tokens(), 2)
    assert contents(data) == [[5, 6], [8], [9, 10]] and data.sizes.tolist() == [2, 1, 2]
    assert data.num_tokens_vec(np.array([0])).tolist() == [2] and data.size(0) == 2
    with pytest.raises(ConfigError, match="truncation_length"):
        TruncateDataset(tokens(), 0)


def test_crops_of_the_original():
    data = RandomCropDataset(ListDataset([torch.arange(20)], sizes=np.array([20])), 8, seed=1)
    starts = []
    for epoch in (1, 2, 3):
        data.set_epoch(epoch)
        starts.append(int(data[0][0]))
        assert len(data[0]) == 8
    assert starts == [10, 7, 4]


def test_shortening_by_split():
    def shorten(split, splits, method):
        return type(maybe_shorten_dataset(tokens(), split, splits, method, 2, 1))

    assert shorten("train", "", "truncate") is TruncateDataset
    assert shorten("train", "valid,train", "random_crop") is RandomCropDataset
    assert shorten("test", "valid,train", "truncate") is ListDataset
    assert shorten("train", "", "none") is ListDataset
    with pytest.raises(ConfigError, match="'cut'"):
        shorten("train", "", "cut")


def test_concatenation():
    data = ConcatDataset([tokens(), tokens([[1, 2]])], sample_ratios=[1, 2])
    assert contents(data) == [*ROWS, [1, 2], [1, 2]] and data.sizes.tolist() == [3, 1, 2, 2, 2]
    assert data.num_tokens(3) == 2 and data.ordered_indices()[0] == 1
    pairs = ConcatSentencesDataset(tokens(), tokens())
    assert contents(pairs) == [row + row for row in ROWS] and pairs.sizes.tolist() == [6, 2, 4]
    assert pairs.num_tokens(0) == 6 and pairs.size(1) == 2
    with pytest.raises(ValueError, match="same number of items"):
        ConcatSentencesDataset(tokens(), tokens(ROWS[:2]))
    with pytest.raises(ValueError, match="at least one"):
        ConcatDataset([])


def test_cache_forgets_at_a_new_epoch():
    class Counted(BaseWrapperDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    counted = Counted([10, 11, 12])
    cached = LRUCacheDataset(counted)
    assert [cached[1], cached[np.int64(1)], cached[1]] == [11, 11, 11] and counted.reads == 1
    cached.set_epoch(2)
    assert cached[1] == 11 and counted.reads == 2


def test_nested():
    source = tokens()
    data = NestedDictionaryDataset(
        {
            "id": IdDataset(),
            "net_input": {"src_tokens": RightPadDataset(source, 1), "none": None},
            "parts": [NumelDataset(source), {"x": source}],
            "plain": BaseWrapperDataset([1.0, 2.0, 3.0]),
        },
        sizes=[source.sizes],
    )
    assert len(data) == 3 and list(data[1]) == ["id", "net_input.src_tokens", "parts.[0]", "parts.[1].x", "plain"]
    batch = data.collater([data[0], data[2]])
    assert batch["id"].tolist() == [0, 2] and batch["net_input"]["src_tokens"].tolist() == [[5, 6, 7], [9, 10, 1]]
    assert batch["parts"]["[0]"].tolist() == [3, 2] and batch["plain"].tolist() == [1.0, 3.0]
    assert [row.tolist() for row in batch["parts"][1]["x"]] == [[5, 6, 7], [9, 10]]
    assert data.collater([]) == {}
    assert data.num_tokens(0) == 3 and data.num_tokens_vec(np.array([2, 0])).tolist() == [2, 3]
    assert data.size(2) == 2


def test_nested_with_two_sizes_and_with_members_that_do_not_fit():
    data = NestedDictionaryDataset({"a": tokens()}, sizes=[np.array([3, 1, 2]), np.array([1, 5, 2])])
    assert data.size(1) == (1, 5) and data.num_tokens(1) == 5
    assert data.num_tokens_vec(np.arange(3)).tolist() == [3, 5, 2]
    with pytest.raises(ValueError, match="'b' has 2 items"):
        NestedDictionaryDataset({"a": tokens(), "b": tokens(ROWS[:2])}, sizes=[None])
    with pytest.raises(ValueError, match="must be a dataset"):
        NestedDictionaryDataset({"a": 3})
