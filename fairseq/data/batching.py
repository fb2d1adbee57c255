"""From the sizes of items to padded batches: which items fit, how they are cut into batches, how they are collated.

`Batches` costs two numbers per batch: host memory stays flat however many sentences there are. B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from fairseq.errors import DataError, OutOfScopeError
from fairseq.ops import batching


class Batches(Sequence[np.ndarray]):
    """Read-only list of batches; each is a view into one flat array of sentence indices.

    Args:
        indices: sentence indices in batching order, int64 (N,).
        ends: where each batch ends in ``indices``, int64 (number of batches,), rising; the last one is N.
    """

    def __init__(self, indices: np.ndarray, ends: np.ndarray) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones count from the end; IndexError when out of range
        return self.indices[self.ends[position - 1] if position else 0 : self.ends[position]]


class OrderedBatches(Sequence[Any]):
    """The batches of one shard and epoch, in order: ``batches[order[0]], batches[order[1]], ...``.

    Args:
        batches: any sequence of batches (never copied).
        order: positions in ``batches``; -1 stands for an empty batch, which fills up a short shard.
    """

    EMPTY = -1

    def __init__(self, batches: Sequence[Any], order: np.ndarray) -> None:
        self.batches = batches
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> OrderedBatches: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return OrderedBatches(self.batches, self.order[index])
        position = int(self.order[index])
        return [] if position == self.EMPTY else self.batches[position]


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


def collate_tokens(
    values: Sequence[Tensor],
    pad_idx: int,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> Tensor:
    """Stack 1-D tensors of different lengths into one (B, T), filled up with ``pad_idx``.

    Args:
        values: at least one tensor of token ids.
        eos_idx: what comes first with ``move_eos_to_beginning``; None: the last token of each item.
        left_pad: put the padding before the tokens.
        move_eos_to_beginning: rotate each item right by one.
        pad_to_length: T is at least this.
        pad_to_multiple: T is a multiple of this.
        pad_to_bsz: B is at least this (rows of padding).
    """
    if move_eos_to_beginning:
        values = [_rotated(value, eos_idx) for value in values]
    side = "left" if left_pad else "right"
    batch = pad_sequence(list(values), batch_first=True, padding_value=pad_idx, padding_side=side)
    width = max(batch.size(1), pad_to_length or 0)
    more = -(-width // pad_to_multiple) * pad_to_multiple - batch.size(1)
    rows = max(len(values), pad_to_bsz or 0) - len(values)
    if more or rows:
        batch = pad(batch, (more, 0, 0, rows) if left_pad else (0, more, 0, rows), value=pad_idx)
    return batch


def _rotated(value: Tensor, eos_idx: int | None) -> Tensor:
    first = value[-1:] if eos_idx is None else value.new_tensor([eos_idx])
    return torch.cat([first, value[:-1]]) if len(value) else value


def lengths_to_padding_mask(lengths: Tensor) -> Tensor:
    """Bool (B, T), True where position t of a sequence of ``lengths`` (B,) is padding; T is the longest."""
    positions = torch.arange(int(lengths.max()), device=lengths.device)
    return positions[None, :] >= lengths[:, None]


def lengths_to_mask(lengths: Tensor) -> Tensor:
    """The opposite of `lengths_to_padding_mask`: True where there is a token."""
    return ~lengths_to_padding_mask(lengths)
