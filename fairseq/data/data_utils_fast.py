"""Old names of the batching operator (the compiled one lives in `fairseq.ops.batching`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fairseq.data.sizing import batch_by_size


def batch_by_size_vec(
    indices: np.ndarray, num_tokens_vec: np.ndarray, max_tokens: int, max_sentences: int, bsz_mult: int
) -> list[np.ndarray]:
    """Batches of ``indices`` as a list of int64 arrays; limits of -1 mean none."""
    return list(
        batch_by_size(
            indices,
            num_tokens_fn=lambda _: 0,
            num_tokens_vec=num_tokens_vec,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=bsz_mult,
        )
    )


def batch_by_size_fn(
    indices: np.ndarray, num_tokens_fn: Callable[[int], int], max_tokens: int, max_sentences: int, bsz_mult: int
) -> list[np.ndarray]:
    """The same, asking ``num_tokens_fn`` for each length."""
    return list(
        batch_by_size(
            indices,
            num_tokens_fn,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=bsz_mult,
        )
    )
