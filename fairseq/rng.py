"""Seeds and the NumPy streams drawn from them, the same on every Python and platform.

Every random choice on the data side (masks, crops, orders) is a pure function of a few integers such as
``(seed, epoch, index)``. The original derived its seed with Python's ``hash`` of the tuple and a floating-point
modulus; old runs can be repeated only with exactly that number, so the hash is written out here instead of trusting
the interpreter (Python 3.7 and PyPy hash tuples differently).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fairseq.errors import ConfigError

_MASK64 = (1 << 64) - 1
_PRIME_1 = 11400714785074694791
_PRIME_2 = 14029467366897019727
_PRIME_5 = 2870177450012600261
_LENGTH_SALT = _PRIME_5 ^ 3527539
_INT_MODULUS = (1 << 61) - 1  # the Mersenne prime of CPython's hash(int) on 64-bit machines


def int_hash(value: int) -> int:
    """CPython's ``hash(value)`` of an integer on a 64-bit machine."""
    if 0 <= value < _INT_MODULUS:
        return value
    hashed = abs(value) % _INT_MODULUS
    hashed = -hashed if value < 0 else hashed
    return -2 if hashed == -1 else hashed


def tuple_hash(*values: int) -> int:
    """CPython's (3.8 and later, 64 bits) ``hash`` of a tuple of integers: the xxHash mixer, as a signed number."""
    acc = _PRIME_5
    for value in values:
        acc = (acc + int_hash(value) * _PRIME_2) & _MASK64
        acc = ((acc << 31) | (acc >> 33)) & _MASK64
        acc = (acc * _PRIME_1) & _MASK64
    acc = (acc + (len(values) ^ _LENGTH_SALT)) & _MASK64
    if acc == _MASK64:
        acc = 1546275796
    return acc - (1 << 64) if acc >> 63 else acc


# The interpreter's own hash is ten times as fast; it is used where it is the one described above.
_hash_of = (
    hash if all(hash(t) == tuple_hash(*t) for t in ((1, 1, 0), (-1, 2**61, 3), (7, 5))) else lambda t: tuple_hash(*t)
)


def derive_seed(seed: int, *extra: int) -> int:
    """One seed in [0, 10**6) from several integers; ``seed`` itself when it comes alone.

    The modulus works on the hash *rounded to double*, as the original's did. Near 2**63 doubles are 1024 apart, so
    only about 20000 different seeds occur: two blocks of equal length often share a mask pattern. Kept, because
    every published run depends on it.
    """
    if not extra:
        if not 0 <= int(seed) < 2**32:
            raise ConfigError(
                f"random streams begin at numbers from 0 to 2**32 - 1, but the seed (and epoch) gives {seed}"
            )
        return int(seed)
    return int(float(_hash_of((int(seed), *map(int, extra)))) % 1e6)


class _Local(threading.local):
    """One legacy generator per thread: seeding an existing one is cheaper than building one per sample."""

    def __init__(self) -> None:
        self.generator = np.random.RandomState(0)


_local = _Local()


def legacy_generator(seed: int, *extra: int) -> np.random.RandomState:
    """The MT19937 stream of ``derive_seed(seed, *extra)``: the numbers that the global ``np.random`` would give.

    The object is shared by all callers in a thread and re-seeded by the next call, so draw from it at once and
    do not keep it.
    """
    generator = _local.generator
    generator.seed(derive_seed(seed, *extra))
    return generator


def legacy_permutation(count: int, seed: int, *extra: int) -> np.ndarray:
    """``np.random.permutation(count)`` under that seed: int64 array of length ``count``.

    It is also the order into which ``np.random.shuffle`` brings a list of ``count`` elements.
    """
    return legacy_generator(seed, *extra).permutation(count)


@contextmanager
def undisturbed() -> Iterator[None]:
    """After the block the global streams of Python and NumPy are where they were before it."""
    python, state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(state)


@contextmanager
def numpy_seed(seed: int | None, *extra: int) -> Iterator[None]:
    """Seed NumPy's global generator inside the block and restore its state afterwards; None does nothing."""
    if seed is None:
        yield
        return
    state = np.random.get_state()
    np.random.seed(derive_seed(seed, *extra))
    try:
        yield
    finally:
        np.random.set_state(state)
