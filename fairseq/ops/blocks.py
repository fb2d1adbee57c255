"""Join whole sentences into blocks of at most ``block_size`` tokens, as token ranges into the concatenated corpus.

Rules (break modes of the original's TokenBlockDataset):

- ``complete``: a sentence joins the current block if the block is empty or the sum stays within ``block_size``;
  otherwise the block is closed and the sentence starts the next one. A sentence longer than ``block_size`` is a block
  of its own.
- ``complete_doc``: the same, but a sentence of exactly ``document_sep_len`` tokens (an empty line is a lone eos: 1)
  ends the document: it closes the current block and is itself left out. Blocks of fewer than 2 tokens are dropped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from fairseq.ops import native


def complete_blocks(
    sizes: np.ndarray | Sequence[int], block_size: int, document_sep_len: int | None = None
) -> np.ndarray:
    """Half-open token ranges, int64 of shape (blocks, 2), of the blocks made of whole sentences.

    Args:
        sizes: tokens in each sentence, in corpus order.
        block_size: the most tokens in a block of several sentences.
        document_sep_len: size of the sentences that separate documents (mode ``complete_doc``); None: mode ``complete``.
    """
    array = np.asarray(sizes)
    if array.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"`sizes` must be a list of integers, but has shape {array.shape} and type {array.dtype}")
    if array.min() < 0:
        raise ValueError(f"`sizes` must not be negative, but holds {array.min()}")
    if document_sep_len is not None and document_sep_len < 0:
        raise ValueError(f"`document_sep_len` must not be negative, but is {document_sep_len} instead")
    compiled = native.function("block_ranges", array)
    if compiled is None:
        return complete_blocks_reference(array, block_size, document_sep_len)
    call, array = compiled
    ranges = np.empty((len(array), 2), dtype=np.int64)  # pages that are never written cost no memory
    separator = -1 if document_sep_len is None else document_sep_len  # no sentence has a length below zero
    count = call(
        native.pointer(array),
        ctypes.c_int64(len(array)),
        ctypes.c_int64(block_size),
        ctypes.c_int64(separator),
        native.pointer(ranges),
    )
    return ranges[:count].copy()


def complete_blocks_reference(sizes: np.ndarray, block_size: int, document_sep_len: int | None = None) -> np.ndarray:
    """The same in plain Python."""
    shortest = 1 if document_sep_len is None else 2
    ranges: list[tuple[int, int]] = []
    begin = filled = 0
    for size in sizes.tolist():
        separates = size == document_sep_len
        if separates or (filled > 0 and filled + size > block_size):
            if filled >= shortest:
                ranges.append((begin, begin + filled))
            begin += filled
            filled = 0
        if separates:
            begin += size
        else:
            filled += size
    if filled >= shortest:
        ranges.append((begin, begin + filled))
    return np.array(ranges, dtype=np.int64).reshape(-1, 2)
