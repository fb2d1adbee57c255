"""Sequences of different lengths as one padded tensor, and masks of their padding (B sequences, T tokens)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
    width = max(max(len(value) for value in values), pad_to_length or 0)
    width = -(-width // pad_to_multiple) * pad_to_multiple
    rows = max(len(values), pad_to_bsz or 0)
    batch = values[0].new_full((rows, width), pad_idx)
    for row, value in zip(batch, values, strict=False):
        cells = row[width - len(value) :] if left_pad else row[: len(value)]
        if move_eos_to_beginning and len(value):
            cells[0] = value[-1] if eos_idx is None else eos_idx
            cells[1:] = value[:-1]
        else:
            cells.copy_(value)
    return batch


def lengths_to_padding_mask(lengths: Tensor) -> Tensor:
    """Bool (B, T), True where position t of a sequence of ``lengths`` (B,) is padding; T is the longest."""
    positions = torch.arange(int(lengths.max()), device=lengths.device)
    return positions[None, :] >= lengths[:, None]


def lengths_to_mask(lengths: Tensor) -> Tensor:
    """The opposite of `lengths_to_padding_mask`: True where there is a token."""
    return ~lengths_to_padding_mask(lengths)
