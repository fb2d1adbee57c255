"""Cut an ordered list of sentences into batches by tokens and sentences.

The rule (the original's, fork version: the last batch is kept whatever its length). A batch starting at sentence i
takes the largest count k such that every prefix of it fits: ``c * longest of the first c <= max_tokens`` and
``c <= max_sentences`` for all c <= k. If k is above ``multiple`` it is lowered to a multiple of it. What is bounded is
thus the padded area, and a batch has at most ``multiple`` sentences or a multiple of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from fairseq.errors import ConfigError, DataError
from fairseq.ops import native

UNLIMITED = np.iinfo(np.int64).max


def batch_by_size(
    num_tokens: np.ndarray | Sequence[int],
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    multiple: int = 1,
) -> np.ndarray:
    """End offsets (int64, rising, the last one is the number of sentences) of the batches of ``num_tokens``.

    Args:
        num_tokens: length of each sentence in tokens, in the order in which they are taken.
        max_tokens: bound on sentences x longest sentence; None or not positive: none.
        max_sentences: bound on sentences; None or not positive: none.
        multiple: batches of more sentences than this have a multiple of it.

    Raises:
        DataError: a sentence alone is longer than ``max_tokens``.
        ConfigError: ``multiple`` is not positive.
    """
    sizes = _checked(num_tokens, max_tokens, multiple)
    tokens = UNLIMITED if max_tokens is None or max_tokens <= 0 else int(max_tokens)
    sentences = UNLIMITED if max_sentences is None or max_sentences <= 0 else int(max_sentences)
    compiled = native.function("batch_ends", sizes)
    if compiled is None:
        return batch_by_size_reference(sizes, tokens, sentences, multiple)
    call, sizes = compiled
    ends = np.empty(len(sizes), dtype=np.int64)  # pages that are never written cost no memory
    count = call(
        native.pointer(sizes),
        ctypes.c_int64(len(sizes)),
        ctypes.c_int64(tokens),
        ctypes.c_int64(sentences),
        ctypes.c_int64(multiple),
        native.pointer(ends),
    )
    return ends[:count].copy()


def batch_by_size_reference(
    num_tokens: np.ndarray, max_tokens: int = UNLIMITED, max_sentences: int = UNLIMITED, multiple: int = 1
) -> np.ndarray:
    """The same in plain Python, with checked arguments and large numbers for "no limit"."""
    sizes = num_tokens.tolist()
    ends: list[int] = []
    start = 0
    while start < len(sizes):
        longest = 0
        end = start
        while end < len(sizes) and end - start < max_sentences:
            longest = max(longest, sizes[end])
            if (end - start + 1) * longest > max_tokens:
                break
            end += 1
        fitting = end - start
        start += fitting - fitting % multiple if fitting > multiple else fitting
        ends.append(start)
    return np.array(ends, dtype=np.int64)


def _checked(num_tokens: np.ndarray | Sequence[int], max_tokens: int | None, multiple: int) -> np.ndarray:
    if multiple < 1:
        raise ConfigError(f"required_batch_size_multiple must be at least 1, but is {multiple} instead")
    sizes = np.asarray(num_tokens)
    if sizes.size == 0:
        return np.empty(0, dtype=np.int64)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise ValueError(f"`num_tokens` must be a list of integers, but has shape {sizes.shape} and type {sizes.dtype}")
    if sizes.min() < 0:
        raise ValueError(f"`num_tokens` must not be negative, but holds {sizes.min()}")
    if max_tokens is not None and 0 < max_tokens < sizes.max():
        worst = int(sizes.argmax())
        raise DataError(
            f"Sentences lengths should not exceed max_tokens={max_tokens}, but sentence {worst} (in batching order) has "
            f"{sizes[worst]} tokens: raise --max-tokens, or leave long sentences out"
        )
    return sizes
