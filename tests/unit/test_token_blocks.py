"""Blocks of tokens: their ranges, what they hold, and the two ways of reading them."""

import numpy as np
import pytest
import torch

from fairseq.compat.data import _get_block_to_dataset_index_fast, _get_slice_indices_fast
from fairseq.data.concat_dataset import ConcatDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from fairseq.data.token_block_dataset import TokenBlockDataset
from fairseq.data.wrappers import ListDataset, TruncateDataset
from fairseq.errors import ConfigError, DataError

SIZES = [3, 4, 1, 2, 1, 5, 6, 1, 1, 9]
RANGES = {
    "none": "0-6, 6-12, 12-18, 18-24, 24-30, 30-33",
    "complete": "0-3, 3-8, 8-11, 11-16, 16-22, 22-24, 24-33",
    "complete_doc": "0-3, 3-7, 8-10, 11-16, 16-22, 24-33",
    "eos": "0-3, 3-7, 7-8, 8-10, 10-11, 11-16, 16-22, 22-23, 23-24, 24-33",
}


def lines(sizes):
    tokens = np.arange(sum(sizes))
    ends = np.cumsum(sizes)
    return [torch.from_numpy(tokens[end - size : end].copy()) for size, end in zip(sizes, ends, strict=True)]


def blocks(data, block_size, mode, **options):
    dataset = ListDataset(data, sizes=np.array([len(line) for line in data]))
    return TokenBlockDataset(dataset, dataset.sizes, block_size, pad=1, eos=2, break_mode=mode, **options)


def ranges(mode):
    return [[int(end) for end in part.split("-")] for part in RANGES[mode].split(", ")]


def mapped(tmp_path, sizes, name="train"):
    builder = MMapIndexedDatasetBuilder(str(tmp_path / f"{name}.bin"), dtype=np.uint16)
    for line in lines(sizes):
        builder.add_item(line)
    builder.finalize(str(tmp_path / f"{name}.idx"))
    return MMapIndexedDataset(str(tmp_path / name))


@pytest.mark.parametrize("mode", RANGES)
def test_ranges_and_contents(mode):
    data = blocks(lines(SIZES), 6, mode)
    assert data.slice_indices.tolist() == ranges(mode)
    assert data.sizes.tolist() == [stop - start for start, stop in ranges(mode)]
    assert [data[i].tolist() for i in range(len(data))] == [list(range(start, stop)) for start, stop in ranges(mode)]
    assert [data.size(i) for i in range(len(data))] == data.num_tokens_vec(np.arange(len(data))).tolist()


@pytest.mark.parametrize("mode", RANGES)
def test_mapped_files_are_read_by_range(tmp_path, mode):
    corpus = mapped(tmp_path, SIZES)
    data = TokenBlockDataset(corpus, corpus.sizes, 6, 1, 2, break_mode=mode)
    assert data._starts is None  # no table of sentence positions
    assert [data[i].tolist() for i in range(len(data))] == [list(range(start, stop)) for start, stop in ranges(mode)]
    assert data[0].dtype == torch.int64
    data[0][0] = 99  # a copy: the corpus does not change
    assert data[0][0] == 0


def test_several_files_read_across_their_limits(tmp_path):
    parts = [mapped(tmp_path, SIZES, "train"), mapped(tmp_path, [4, 4], "train1")]
    corpus = ConcatDataset(parts)
    assert corpus.is_contiguous and len(corpus) == 12
    data = TokenBlockDataset(corpus, corpus.sizes, 7, 1, 2, break_mode="none")
    whole = [*range(33), *range(8)]
    assert [token for i in range(len(data)) for token in data[i].tolist()] == whole
    twice = ConcatDataset(parts, sample_ratios=[1, 2])
    assert not twice.is_contiguous
    data = TokenBlockDataset(twice, twice.sizes, 7, 1, 2, break_mode="none")
    assert [token for i in range(len(data)) for token in data[i].tolist()] == [*whole, *range(8)]


def test_shortened_sentences_are_put_together():
    dataset = ListDataset(lines([5, 2, 6]), sizes=np.array([5, 2, 6]))
    short = TruncateDataset(dataset, 3)
    data = TokenBlockDataset(short, short.sizes, 4, 1, 2, break_mode="none")
    assert [data[i].tolist() for i in range(len(data))] == [[0, 1, 2, 5], [6, 7, 8, 9]]


def test_place_of_blocks_in_sentences():
    data = blocks(lines([5, 3]), 3, "none")
    assert data.block_to_dataset_index.tolist() == [[0, 0, 0], [0, 3, 1], [1, 1, 1]]
    # At a limit between sentences the following one is the first.
    data = blocks(lines([3, 3]), 3, "none")
    assert data.block_to_dataset_index.tolist() == [[0, 0, 0], [1, 0, 1]]


def test_empty_sentences_hold_no_position():
    data = blocks(lines([2, 0, 3, 0]), 2, "none")
    assert [data[i].tolist() for i in range(len(data))] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("mode", RANGES)
def test_old_operator_names(mode):
    table = _get_slice_indices_fast(np.array(SIZES), mode, 6, 1)
    assert table.tolist() == ranges(mode)
    expected = blocks(lines(SIZES), 6, mode).block_to_dataset_index
    assert _get_block_to_dataset_index_fast(SIZES, table).tolist() == expected.tolist()


def test_targets_with_left_context():
    rows = [torch.arange(4) + 10 * k for k in range(5)]
    data = blocks(rows, 3, "none", include_targets=True)
    assert [part.tolist() for part in data[0]] == [[2, 0, 1], [0, 1, 2], [1, 2, 0]]
    assert [part.tolist() for part in data[1]] == [[2, 3, 10], [3, 10, 11], [1, 2, 3]]
    assert [part.tolist() for part in data[2]] == [[11, 12, 13], [12, 13, 20], [10, 11, 12]]
    assert [part.tolist() for part in data[3]] == [[20, 21, 22], [21, 22, 23], [2, 20, 21]]


def test_sizes_above_16_bits_are_kept():
    data = blocks([torch.zeros(65900, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)], 100, "complete")
    assert data.sizes.tolist() == [65900, 3]
    kept, ignored = data.filter_indices_by_size(np.arange(2), 512)
    assert kept.tolist() == [1] and ignored.tolist() == [0]


def test_four_billion_tokens():
    class Huge:
        is_contiguous = True

        def __len__(self):
            return 4

        def read_tokens(self, start, stop):
            return np.arange(start, stop) % 1000

    sizes = np.full(4, 2**31 - 1, dtype=np.int32)
    data = TokenBlockDataset(Huge(), sizes, 2**20, 1, 2, break_mode="none")
    assert len(data) == 8192 and data.slice_indices[-1].tolist() == [8191 * 2**20, 4 * (2**31 - 1)]
    assert data[8191][0] == 8191 * 2**20 % 1000


def test_nothing_of_corpus_size_is_stored_for_blocks_of_fixed_length(tmp_path):
    corpus = mapped(tmp_path, [1] * 5000)
    data = TokenBlockDataset(corpus, corpus.sizes, 1000, 1, 2, break_mode="none")
    own = [value for name, value in vars(data).items() if isinstance(value, np.ndarray) and name != "_sentence_sizes"]
    assert sum(array.nbytes for array in own) <= 8 * len(data)
    assert data._sentence_sizes.base is not None  # a view of the mapped index


@pytest.mark.parametrize("mode", ["complete", "complete_doc", "none"])
@pytest.mark.parametrize("size", [0, -1, None])
def test_impossible_block_sizes(mode, size):
    with pytest.raises(ConfigError, match="block size"):
        blocks(lines(SIZES), size, mode)
    assert len(blocks(lines(SIZES), size, "eos")) == len(SIZES)


def test_nothing_to_cut():
    with pytest.raises(DataError, match="at least one sentence"):
        blocks([], 6, "none")
    with pytest.raises(DataError, match=r"give no block with sample_break_mode complete_doc"):
        blocks(lines([1, 1, 1]), 6, "complete_doc")
    with pytest.raises(DataError, match="give no block"):
        blocks(lines([0, 0]), 6, "none")
    with pytest.raises(ConfigError, match="'paragraph'"):
        blocks(lines(SIZES), 6, "paragraph")
    with pytest.raises(IndexError):
        _ = blocks(lines(SIZES), 6, "none")[6]
