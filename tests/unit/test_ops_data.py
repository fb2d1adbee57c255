"""Batching and blocks: the stated examples, odd input, and equality of the compiled functions with their reference implementations."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from fairseq.errors import ConfigError, DataError
from fairseq.ops import batching, blocks, native
from fairseq.ops.batching import batch_by_size
from fairseq.ops.blocks import complete_blocks
from tests.common import ROOT

TOKENS = [3, 3, 4, 5, 5, 6, 7, 9, 9, 10]
SIZES = [3, 4, 1, 2, 1, 5, 6, 1, 1, 9]


@pytest.fixture(params=["compiled", "reference"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the same answer; the compiled one where it is built."""
    if request.param == "reference":
        monkeypatch.setattr(native, "function", lambda name, sizes: None)
    elif not native.load():
        pytest.skip(str(native.why_unavailable()))
    return request.param


@pytest.mark.parametrize(
    ("tokens", "limits", "expected"),
    [
        (TOKENS, (20, None, 1), [4, 2, 2, 2]),
        (TOKENS, (None, 4, 1), [4, 4, 2]),
        (TOKENS, (None, 16, 8), [8, 2]),
        (TOKENS, (40, 4, 8), [4, 4, 2]),
        (TOKENS, (None, None, 1), [10]),
        (TOKENS, (-1, 0, 8), [8, 2]),
        ([1] * 13, (None, 16, 8), [8, 5]),
        ([1] * 37, (None, 10, 8), [8, 8, 8, 8, 5]),
        ([7], (7, 1, 8), [1]),
        ([0, 0, 0], (1, None, 1), [3]),
        ([], (10, 10, 8), []),
    ],
)
def test_batches(path: str, tokens: list[int], limits: tuple[int | None, int | None, int], expected: list[int]):
    ends = batch_by_size(tokens, *limits)
    assert ends.dtype == np.int64
    assert np.diff(ends, prepend=0).tolist() == expected


def test_batches_of_absurd_sizes_do_not_overflow(path: str):
    huge = np.full(4, 2**61, dtype=np.int64)
    assert batch_by_size(huge, 2**62, None, 1).tolist() == [2, 4]


def test_batches_refuse_impossible_settings(path: str):
    with pytest.raises(DataError, match=r"should not exceed max_tokens=9, but sentence 9 .* has 10 tokens"):
        batch_by_size(TOKENS, 9)
    with pytest.raises(ConfigError, match="required_batch_size_multiple must be at least 1, but is 0"):
        batch_by_size(TOKENS, 20, None, 0)
    with pytest.raises(ValueError, match="integers"):
        batch_by_size(np.array([1.5]), 20)
    with pytest.raises(ValueError, match="negative"):
        batch_by_size([3, -1], 20)


def test_blocks(path: str):
    complete = [(0, 3), (3, 8), (8, 11), (11, 16), (16, 22), (22, 24), (24, 33)]
    assert [tuple(r) for r in complete_blocks(SIZES, 6).tolist()] == complete
    by_document = [(0, 3), (3, 7), (8, 10), (11, 16), (16, 22), (24, 33)]
    assert [tuple(r) for r in complete_blocks(SIZES, 6, 1).tolist()] == by_document


@pytest.mark.parametrize(
    ("sizes", "separator", "expected"),
    [
        ([], None, []),
        ([9], None, [[0, 9]]),  # longer than a block: a block of its own
        ([9, 9], None, [[0, 9], [9, 18]]),
        ([1], None, [[0, 1]]),
        ([1], 1, []),  # nothing but a separator
        ([1, 1, 1], 1, []),
        ([2, 1], 0, [[0, 3]]),
        ([0, 3], None, [[0, 3]]),
    ],
)
def test_blocks_at_the_edges(path: str, sizes: list[int], separator: int | None, expected: list[list[int]]):
    ranges = complete_blocks(sizes, 6, separator)
    assert ranges.shape == (len(expected), 2) and ranges.tolist() == expected


@pytest.mark.skipif(not native.load(), reason=str(native.why_unavailable()))
def test_compiled_equals_reference():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        kind = rng.choice(["uint8", "uint16", "int32", "uint32", "int64", "uint64"])
        sizes = rng.integers(0, 12, rng.integers(1, 40)).astype(kind)
        sizes = sizes[:: rng.integers(1, 3)]  # strided now and then
        tokens, sentences, multiple = (int(rng.integers(low, high)) for low, high in ((12, 60), (1, 20), (1, 9)))
        for limits in ((tokens, sentences), (tokens, batching.UNLIMITED), (batching.UNLIMITED, sentences)):
            fast = batch_by_size(sizes, *limits, multiple)
            assert np.array_equal(fast, batching.batch_by_size_reference(sizes, *limits, multiple))
        for separator in (None, 0, 1, 2):
            fast = complete_blocks(sizes, sentences, separator)
            assert np.array_equal(fast, blocks.complete_blocks_reference(sizes, sentences, separator))


def test_read_only_sizes_are_not_copied():
    if not native.load():
        pytest.skip(str(native.why_unavailable()))
    sizes = np.arange(1, 5, dtype=np.int32)
    sizes.flags.writeable = False
    compiled = native.function("batch_ends", sizes)
    assert compiled is not None and np.shares_memory(compiled[1], sizes)
    assert batch_by_size(sizes, 8).tolist() == [2, 4]


def test_switched_off_by_the_environment():
    code = (
        "from fairseq.ops import native\nfrom fairseq.ops.batching import batch_by_size\n"
        "print(native.load(), native.why_unavailable(), batch_by_size([1, 2, 3], 4).tolist())"
    )
    environment = {**os.environ, "FAIRSEQ_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "False FAIRSEQ_NATIVE=0 is set in the environment [2, 3]"


def test_a_stale_or_broken_library_is_explained(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "_data.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "_HERE", tmp_path)
    monkeypatch.delenv("FAIRSEQ_NATIVE", raising=False)
    native.reset()
    try:
        assert not native.load()
        assert "_data.so cannot be loaded" in str(native.why_unavailable())
        (tmp_path / "_data.so").unlink()
        native.reset()
        assert "were not built" in str(native.why_unavailable())
        assert batch_by_size([1, 2, 3], 4).tolist() == [2, 3]
    finally:
        monkeypatch.undo()
        native.reset()
