"""Behaviour of `MaskTokensDataset` around its numbers: one computation, epochs, checks, bad input."""

import numpy as np
import pytest
import torch

from fairseq.data.masking import MaskTokensDataset, draw_replacements, replacement_table
from fairseq.data.wrappers import ListDataset
from fairseq.errors import ConfigError, DataError
from tests.common import tiny_dictionary


class Counted(ListDataset):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def items(count=5, length=30):
    rows = [torch.tensor([0, *[4 + (i * 7 + j) % 40 for j in range(length - 2)], 2]) for i in range(count)]
    return Counted(rows, sizes=np.full(count, length))


@pytest.fixture
def dictionary():
    result = tiny_dictionary()
    result.add_symbol("<mask>")
    return result


def test_source_and_target_come_from_one_computation(dictionary):
    data = items()
    sources, targets = MaskTokensDataset.apply_mask(data, dictionary, 1, 44, mask_prob=0.5)
    sources.set_epoch(1)
    for index in range(5):
        source, target = sources[index], targets[index]
        predicted = target != 1
        assert predicted.any() and torch.equal(source[~predicted], data.dataset[index][~predicted])
        assert torch.equal(target[predicted], data.dataset[index][predicted])
    assert data.reads == 5


def test_views_read_alone_and_in_any_order_agree(dictionary):
    sources, targets = MaskTokensDataset.apply_mask(items(), dictionary, 1, 44, mask_prob=0.5)
    alone = MaskTokensDataset(items(), dictionary, 1, 44, return_masked_tokens=True, mask_prob=0.5)
    expected = [alone[i] for i in range(5)]
    assert all(torch.equal(targets[i], expected[i]) for i in (3, 0, 4, 1, 2))
    assert all(torch.equal(sources[i], sources[np.int64(i)]) for i in range(5))


def test_an_epoch_never_returns_the_mask_of_another(dictionary):
    sources, targets = MaskTokensDataset.apply_mask(items(), dictionary, 1, 44, mask_prob=0.5)
    by_epoch = {}
    for epoch in (1, 2, 1):
        targets.set_epoch(epoch)
        assert sources.epoch == epoch
        row = (sources[4].tolist(), targets[4].tolist())
        assert by_epoch.setdefault(epoch, row) == row
    assert by_epoch[1] != by_epoch[2]


def test_global_random_state_is_left_alone(dictionary):
    data = MaskTokensDataset(items(), dictionary, 1, 44)
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    _ = data[0]
    assert np.random.rand() == expected


def test_token_sampler_gives_the_numbers_of_choice(dictionary):
    for counts in (None, dictionary.count):
        weights = np.ones(45) if counts is None else np.array(counts, dtype=np.float64)
        weights[:4] = 0
        expected = np.random.RandomState(5).choice(45, 300, p=weights / weights.sum())
        drawn = draw_replacements(np.random.RandomState(5), replacement_table(counts, 45, 4), 300)
        assert drawn.tolist() == expected.tolist() and drawn.min() >= 4


def test_skip_masking_copies(dictionary):
    data = items()
    sources, targets = MaskTokensDataset.apply_mask(data, dictionary, 1, 44, skip_masking=True)
    assert torch.equal(sources[2], data.dataset[2]) and torch.equal(targets[2], data.dataset[2])
    assert sources[2] is not data.dataset[2]


@pytest.mark.parametrize(
    "options",
    [
        {"mask_prob": 0.0},
        {"mask_prob": 1.0},
        {"random_token_prob": -0.1},
        {"leave_unmasked_prob": 1.1},
        {"random_token_prob": 0.6, "leave_unmasked_prob": 0.6},
        {"mask_multiple_length": 0},
        {"mask_stdev": -1.0},
    ],
)
def test_impossible_options(dictionary, options):
    with pytest.raises(ConfigError, match="must"):
        MaskTokensDataset(items(), dictionary, 1, 44, **options)


def test_data_of_another_dictionary(dictionary):
    with pytest.raises(DataError, match=r"id 45, but the dictionary has only 45 symbols.*does not fit"):
        _ = MaskTokensDataset(ListDataset([torch.tensor([0, 45, 2])], sizes=[3]), dictionary, 1, 44)[0]
    with pytest.raises(DataError, match="already holds the mask symbol"):
        _ = MaskTokensDataset(ListDataset([torch.tensor([0, 44, 2])], sizes=[3]), dictionary, 1, 44)[0]


def test_whole_words_need_a_word_at_the_start_and_a_full_table(dictionary):
    begins = torch.ones(45, dtype=torch.uint8)
    begins[0] = 0
    with pytest.raises(DataError, match="first token begins a word"):
        _ = MaskTokensDataset(items(), dictionary, 1, 44, mask_whole_words=begins)[0]
    with pytest.raises(DataError, match="covers 44 symbols"):
        MaskTokensDataset(items(), dictionary, 1, 44, mask_whole_words=begins[:44])


def test_frequencies_that_are_all_zero(dictionary):
    dictionary.count = [0] * len(dictionary)
    with pytest.raises(DataError, match="random_token_prob to 0"):
        MaskTokensDataset(items(), dictionary, 1, 44, freq_weighted_replacement=True)


def test_exact_masking_splits_every_sequence_alike(dictionary):
    """128 tokens at 0.25: 32 places, of which 26 are hidden, 3 random and 3 as they are (Cramming's numbers)."""
    rows = [torch.full((128,), 7 + i) for i in range(3)]
    data = ListDataset(rows, sizes=np.full(3, 128))
    sources, targets = MaskTokensDataset.apply_mask(data, dictionary, 1, 44, mask_prob=0.25, mask_exact=True)
    drawn = set()
    for epoch in range(1, 200):
        sources.set_epoch(epoch)
        for index, row in enumerate(rows):
            source, predicted = sources[index], targets[index] != 1
            hidden, same = source == 44, source == row
            changed = predicted & ~hidden & ~same
            assert predicted.sum() == 32 and torch.equal(source[~predicted], row[~predicted])
            # A random token may be the mask symbol or the token itself.
            assert 26 <= hidden.sum() <= 29 and 3 <= (predicted & same).sum() <= 6
            drawn |= set(source[changed].tolist())
    assert drawn | {7, 8, 9, 44} == set(range(len(dictionary)))  # specials too


@pytest.mark.parametrize(
    "settings",
    [{"mask_multiple_length": 3}, {"mask_stdev": 1.0}, {"freq_weighted_replacement": True}],
)
def test_exact_masking_is_of_single_uniform_tokens(dictionary, settings):
    with pytest.raises(ConfigError, match="mask_exact"):
        MaskTokensDataset(items(), dictionary, 1, 44, mask_exact=True, **settings)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_exact_masking_of_short_sequences(dictionary, length):
    data = ListDataset([torch.arange(5, 5 + length)], sizes=np.full(1, length))
    sources, targets = MaskTokensDataset.apply_mask(data, dictionary, 1, 44, mask_prob=0.25, mask_exact=True)
    assert (targets[0] != 1).sum() == round(0.25 * length) and len(sources[0]) == length
