"""Sequences of different lengths as one padded tensor, and masks of their padding (B sequences, T tokens)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence


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
