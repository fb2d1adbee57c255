"""Sinusoidal positions.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fairseq.registry import POSITIONS


def sinusoidal_table(rows: int, dim: int, padding_idx: int | None) -> Tensor:
    """(rows, dim) float32: sines of all frequencies, then cosines (not interleaved).

    The frequencies are exp(-i ln(10000) / (dim // 2 - 1)); an odd ``dim`` gets a zero column; row ``padding_idx`` is 0.
    """
    half = dim // 2
    step = math.log(10000) / max(half - 1, 1)
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -step)
    angles = torch.arange(rows, dtype=torch.float).unsqueeze(1) * frequencies.unsqueeze(0)
    table = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if table.size(1) < dim:
        table = torch.cat([table, table.new_zeros(rows, dim - table.size(1))], dim=1)
    if padding_idx is not None and padding_idx < rows:
        table[padding_idx] = 0
    return table


@POSITIONS.register("sinusoidal")
class SinusoidalPositionalEmbedding(nn.Module):
    """A fixed table, kept in float32 outside the state dict and made (or made longer) when first needed.

    Deviation from the original: a model cast to half and back keeps exact positions, because only what is looked up
    is rounded, not the table.
    """

    _float_tensor: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        # Old checkpoints carry this key; it tells the dtype and device of the model, its value means nothing.
        self.register_buffer("_float_tensor", torch.zeros(1))
        self._table: Tensor | None = None

    def check(self, position_ids: Tensor, explicit: bool) -> None:
        """Make the table reach the ids; any non-negative id fits."""
        needed = self.num_embeddings
        if explicit and position_ids.device.type != "meta" and position_ids.numel():
            needed = max(needed, int(position_ids.max()) + 1)
        else:
            needed = max(needed, position_ids.size(-1) + self.padding_idx + 1)
        device = self._float_tensor.device
        if self._table is None or self._table.size(0) < needed:
            self._table = sinusoidal_table(needed, self.embedding_dim, self.padding_idx).to(device)
        elif self._table.device != device:
            self._table = self._table.to(device)

    def forward(self, position_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        if self._table is None or self._table.device != position_ids.device:
            self.check(position_ids, explicit=True)
        assert self._table is not None
        return self._table[position_ids].to(self._float_tensor.dtype)
