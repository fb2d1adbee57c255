"""Which items fit, and how they are cut into batches, by their sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fairseq.data.batches import Batches
from fairseq.errors import DataError, OutOfScopeError
from fairseq.ops import batching


def batch_by_size(
    indices: np.ndarray | Sequence[int],
    num_tokens_fn: Callable[[int], int],
    num_tokens_vec: np.ndarray | None = None,
    max_tokens: int | None = None,
    max_sentences: int | None = None,
    required_batch_size_multiple: int = 1,
    fixed_shapes: Any = None,
) -> Batches:
    """Cut ordered ``indices`` into batches of bounded padded area.

    Args:
        indices: sentence indices in batching order (N,).
        num_tokens_fn: tokens of one sentence; asked for every index when ``num_tokens_vec`` is None.
        num_tokens_vec: tokens of each of ``indices`` (N,).
        max_tokens: most tokens in a batch, padding included.
        max_sentences: most sentences in a batch.
        required_batch_size_multiple: batches of more sentences than this have a multiple of it.

    The last batch is kept whatever its length. Rule and errors: `fairseq.ops.batching.batch_by_size`.
    """
    if fixed_shapes is not None:
        raise OutOfScopeError("fixed batch shapes served TPUs, which this project does not support; leave them out")
    indices = np.asarray(indices, dtype=np.int64)
    if num_tokens_vec is None:
        num_tokens_vec = np.fromiter((num_tokens_fn(i) for i in indices), dtype=np.int64, count=len(indices))
    ends = batching.batch_by_size(num_tokens_vec, max_tokens, max_sentences, required_batch_size_multiple)
    return Batches(indices, ends)


def fits(size: Any, limit: Any) -> bool:
    """Whether ``size`` (a number, tuple or dict of them) is within ``limit`` (None: no limit) element by element."""
    if limit is None or size is None:
        return True
    if isinstance(limit, dict):
        parts = size if isinstance(size, dict) else dict.fromkeys(limit, size)
        return all(fits(part, limit.get(key)) for key, part in parts.items())
    if isinstance(size, dict):
        return all(fits(part, limit) for part in size.values())
    if isinstance(size, (tuple, list)):
        limits = limit if isinstance(limit, (tuple, list)) else [limit] * len(size)
        return all(fits(part, bound) for part, bound in zip(size, limits, strict=True))
    if isinstance(limit, (tuple, list)):
        return all(fits(size, bound) for bound in limit)
    return bool(size <= limit)


def filter_by_size_dynamic(
    indices: np.ndarray, size_fn: Callable[[int], Any], max_positions: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Split ``indices`` by asking for one size after the other: those within ``max_positions``, and the others."""
    kept = np.fromiter((fits(size_fn(i), max_positions) for i in indices), dtype=bool, count=len(indices))
    return indices[kept], indices[~kept]


def filter_by_size(
    indices: np.ndarray, dataset: Any, max_positions: Any, raise_exception: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """``dataset.filter_indices_by_size``, raising for the first item that is too long if asked to."""
    kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
    if raise_exception and len(ignored):
        worst = int(ignored[0])
        raise DataError(
            f"Size of sample #{worst} is invalid (={dataset.size(worst)}) since max_positions={max_positions}, skip this "
            f"example with --skip-invalid-size-inputs-valid-test ({len(ignored)} of {len(indices)} validation samples are "
            "too long; a corpus of long lines can be cut into blocks across lines with --sample-break-mode none)"
        )
    return kept, ignored
