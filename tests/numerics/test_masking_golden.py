"""Masks of the original, made with its own modules: every option, bit for bit.

Dictionary: 4 specials, w00 ... w39 with counts 1 ... 40, ``<mask>``: 45 symbols, mask 44, pad 1. Seed 1.
"""

import numpy as np
import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.masking import MaskingOptions, MaskTokensDataset, choose_units
from fairseq.data.wrappers import ListDataset
from fairseq.rng import legacy_generator

MASK, PAD = 44, 1
ITEMS = [[0, *range(10, 30), 2], [0, *range(30, 40), 2], list(range(4, 44))]


@pytest.fixture(scope="module")
def dictionary():
    result = Dictionary()
    for word in range(40):
        result.add_symbol(f"w{word:02d}", n=word + 1)
    assert result.add_symbol("<mask>") == MASK
    return result


def masked(dictionary, epoch, index, **options):
    items = ListDataset([torch.tensor(item) for item in ITEMS], sizes=np.array([len(item) for item in ITEMS]))
    sources, targets = MaskTokensDataset.apply_mask(items, dictionary, PAD, MASK, seed=1, **options)
    sources.set_epoch(epoch)
    source, target = sources[index], targets[index]
    assert source.dtype == target.dtype == torch.int64
    return source.tolist(), target.tolist()


def check(dictionary, epoch, index, positions, changes, default=MASK, **options):
    """``positions`` carry targets; the source holds ``changes`` there, and ``default`` at those not listed."""
    source, target = masked(dictionary, epoch, index, **options)
    item = ITEMS[index]
    assert target == [token if i in positions else PAD for i, token in enumerate(item)]
    assert source == [changes.get(i, default) if i in positions else token for i, token in enumerate(item)]


DEFAULTS = [
    (1, 0, {8, 12, 21}, {}),
    (1, 1, {3, 4}, {}),
    (1, 2, {7, 14, 24, 28, 34, 35}, {}),
    (2, 0, {3, 5, 12}, {}),
    (2, 1, {1}, {1: 30}),
    (2, 2, {1, 5, 24, 29, 38, 39}, {24: 28, 38: 18}),
]


@pytest.mark.parametrize(("epoch", "index", "positions", "changes"), DEFAULTS)
def test_default_masks(dictionary, epoch, index, positions, changes):
    check(dictionary, epoch, index, positions, changes)


HALF = {
    1: {0, 3, 8, 9, 11, 12, 15, 17, 18, 20, 21},
    2: {0, 1, 2, 3, 5, 7, 9, 10, 11, 12, 17},
}


@pytest.mark.parametrize("epoch", [1, 2])
def test_only_mask_symbols(dictionary, epoch):
    options = {"mask_prob": 0.5, "random_token_prob": 0.0, "leave_unmasked_prob": 0.0}
    check(dictionary, epoch, 0, HALF[epoch], {}, **options)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (1, "44 10 11 44 13 14 15 16 38 44 19 20 40 22 23 26 25 9 34 28 44 44"),
        (2, "24 44 11 43 13 28 15 41 17 18 19 44 15 22 23 24 25 44 27 28 29 2"),
    ],
)
def test_random_tokens_by_frequency(dictionary, epoch, expected):
    source, target = masked(
        dictionary,
        epoch,
        0,
        mask_prob=0.5,
        random_token_prob=0.5,
        leave_unmasked_prob=0.2,
        freq_weighted_replacement=True,
    )
    assert source == [int(token) for token in expected.split()]
    assert {i for i, token in enumerate(target) if token != PAD} == HALF[epoch]


def test_spans_of_constant_length(dictionary):
    options = {"mask_multiple_length": 3, "mask_prob": 0.3}
    check(dictionary, 1, 0, {12, 13, 14, 21}, {13: 34}, **options)
    check(dictionary, 2, 0, {3, 4, 5, 12, 13, 14}, {4: 15}, **options)


def test_spans_of_random_length(dictionary):
    options = {"mask_multiple_length": 3, "mask_prob": 0.3, "mask_stdev": 1.0}
    check(dictionary, 1, 0, {12, 13, 14, 15, 21}, {14: 17, 15: 4}, **options)
    check(dictionary, 2, 0, {3, 4, 5, 6, 7, 12, 13, 14}, {}, **options)


@pytest.mark.parametrize(
    ("index", "positions", "changes"),
    [
        (0, {7, 8, 9, 21}, {21: 6}),
        (1, {0, 1}, {}),
        (2, {*range(6, 12), *range(27, 33)}, {}),
    ],
)
def test_whole_words(dictionary, index, positions, changes):
    begins = torch.ByteTensor([i < 4 or (i - 4) % 3 == 0 for i in range(len(dictionary))])
    check(dictionary, 0, index, positions, changes, mask_prob=0.3, mask_whole_words=begins)


def test_trace_of_the_draws():
    stream = legacy_generator(1, 1, 0)
    assert stream.rand() == 0.44939609648968937
    assert stream.permutation(22)[:3].tolist() == [21, 12, 8]
    second = stream.rand(22)
    assert second[:3].tolist() == [0.8225933570906626, 0.49624552449316905, 0.08949692989155789]
    assert np.flatnonzero(second < 0.2).tolist() == [2, 11, 13, 16, 17, 18]
    assert stream.rand(22)[0] == 0.7219510708327356


@pytest.mark.parametrize("units", [0, 1, 2, 7, 512])
@pytest.mark.parametrize("prob", [0.001, 0.15, 0.999])
@pytest.mark.parametrize(("length", "stdev"), [(1, 0.0), (4, 0.0), (3, 2.5)])
def test_positions_are_those_of_the_plain_calls(units, prob, length, stdev):
    """The readable form of the original's draws, with ``choice`` and a loop over spans."""
    for index in range(20):
        reference = np.random.RandomState(index)
        count = int(prob * units / float(length) + reference.rand())
        starts = reference.choice(units, count, replace=False) if units else np.empty(0, dtype=int)
        spans = reference.normal(length, stdev, size=count) if stdev > 0 else [length] * count
        expected = {
            start + offset
            for start, span in zip(starts, spans, strict=True)
            for offset in range(max(0, int(round(span))))
            if start + offset < units
        }
        options = MaskingOptions(mask_prob=prob, mask_multiple_length=length, mask_stdev=stdev)
        predicted = choose_units(np.random.RandomState(index), units, options)
        assert set(np.flatnonzero(predicted).tolist()) == expected
