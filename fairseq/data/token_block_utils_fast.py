"""Old names of the block operators (the compiled one lives in `fairseq.ops.blocks`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairseq.data.token_block_dataset import locate
from fairseq.ops.blocks import complete_blocks


def _get_slice_indices_fast(
    sizes: np.ndarray | Sequence[int], break_mode: str | None, block_size: int, document_sep_len: int
) -> np.ndarray:
    """Token ranges, int64 (blocks, 2), of the blocks of ``break_mode``."""
    sizes = np.asarray(sizes, dtype=np.int64)
    if break_mode in ("complete", "complete_doc"):
        return complete_blocks(sizes, block_size, document_sep_len if break_mode == "complete_doc" else None)
    if break_mode == "eos":
        ends = np.cumsum(sizes)
        return np.stack([ends - sizes, ends], axis=1)
    if break_mode not in (None, "none"):
        raise ValueError(f"break_mode must be none, complete, complete_doc or eos, but is {break_mode!r} instead")
    starts = np.arange(0, int(sizes.sum()), block_size, dtype=np.int64)
    return np.stack([starts, np.minimum(starts + block_size, sizes.sum())], axis=1)


def _get_block_to_dataset_index_fast(sizes: np.ndarray | Sequence[int], slice_indices: np.ndarray) -> np.ndarray:
    """(first sentence, offset in it, last sentence) of every range, int64 (blocks, 3)."""
    starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])
    return locate(starts, np.asarray(slice_indices))
