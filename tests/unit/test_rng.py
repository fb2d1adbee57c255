"""The seed derivation is CPython's tuple hash with the original's floating-point modulus, and leaves no trace."""

import random
import threading

import numpy as np
import pytest

from fairseq.rng import derive_seed, legacy_generator, legacy_permutation, numpy_seed, tuple_hash


@pytest.mark.parametrize(
    ("values", "seed"),
    [
        ((1, 1, 0), 810752),
        ((1, 1, 1), 808832),
        ((1, 1, 2), 744640),
        ((1, 2, 0), 565248),
        ((1, 1, 1000000), 971328),
        ((42, 3, 7), 718528),
        ((0, 0, 0), 9152),
    ],
)
def test_derived_seeds_of_the_original(values, seed):
    assert derive_seed(*values) == seed


def test_raw_hashes():
    assert tuple_hash(1, 1, 0) == -757448186211189212
    assert tuple_hash(1, 1, 1) == 5750192569890809213
    assert tuple_hash(1, 2, 0) == -3194506032951434905


def test_hash_is_that_of_the_interpreter():
    pick = random.Random(3)
    for _ in range(3000):
        values = tuple(
            pick.choice([pick.randrange(-3, 50), pick.randrange(-(2**70), 2**70)]) for _ in range(pick.randrange(5))
        )
        assert tuple_hash(*values) == hash(values)


def test_single_seed_is_used_as_is_and_numpy_integers_count_as_integers():
    assert derive_seed(5) == 5
    assert derive_seed(1, np.int64(1), np.int32(0)) == derive_seed(1, 1, 0)


def test_numpy_seed_restores_the_global_state():
    np.random.seed(11)
    expected = np.random.rand(4)
    np.random.seed(11)
    first = np.random.rand(2)
    with numpy_seed(1, 2, 3):
        inside = np.random.rand()
    with pytest.raises(ZeroDivisionError), numpy_seed(5):
        _ = 1 / 0
    with numpy_seed(None):
        pass
    assert np.array_equal(np.concatenate([first, np.random.rand(2)]), expected)
    with numpy_seed(1, 2, 3):
        assert np.random.rand() == inside


def test_legacy_generator_gives_the_global_stream_and_threads_do_not_disturb_each_other():
    with numpy_seed(1, 2, 3):
        expected = np.random.rand(5)
    generator = legacy_generator(1, 2, 3)
    first = generator.rand(2)
    thread = threading.Thread(target=lambda: legacy_generator(9).rand(100))
    thread.start()
    thread.join()
    assert np.array_equal(np.concatenate([first, generator.rand(3)]), expected)


def test_permutation_is_the_order_of_a_shuffled_list():
    assert legacy_permutation(10, 1).tolist() == [2, 9, 6, 4, 0, 3, 1, 7, 8, 5]
    for count in (1, 2, 10, 1000):
        items = [[i] for i in range(count)]
        with numpy_seed(7):
            np.random.shuffle(items)
        assert [item[0] for item in items] == legacy_permutation(count, 7).tolist()
