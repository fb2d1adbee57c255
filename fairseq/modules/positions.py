"""Token and position embeddings: learned and sinusoidal positions, and how positions count padding.

Legend: B batch, T tokens, C channels, P longest input, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import DataError
from fairseq.registry import POSITIONS


@POSITIONS.register("learned")
class LearnedPositionalEmbedding(nn.Embedding):
    """A table of P + padding_idx + 1 rows; row ``padding_idx`` is zero and stays so, the rows before it are unused."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        with torch.no_grad():
            nn.init.normal_(self.weight, mean=0.0, std=embedding_dim**-0.5)
            self.weight[padding_idx].zero_()
        self.pad = padding_idx

    @property
    def max_positions(self) -> int:
        """P: the longest input the table reaches."""
        return self.num_embeddings - self.pad - 1

    def check(self, position_ids: Tensor, explicit: bool) -> None:
        """Raise DataError when an id lies outside the table.

        Ids counted from the tokens can only do so in inputs wider than P, so the transfer from the device that
        looking costs is paid there alone.
        """
        if torch.compiler.is_compiling() or position_ids.device.type == "meta" or not position_ids.numel():
            return
        if not explicit and position_ids.size(-1) <= self.max_positions:
            return
        low, high = int(position_ids.min()), int(position_ids.max())
        if low < 0 or high >= self.num_embeddings:
            wrong = f"position id {low}" if low < 0 else f"an input of {high - self.pad} tokens"
            raise DataError(
                f"{wrong} does not fit the model, which has learned positions for at most {self.max_positions} tokens; "
                "shorten the input, skip long samples, or use a model with more positions"
            )

    def forward(self, position_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        return super().forward(position_ids)


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


class TokenEmbedding(nn.Embedding):
    """Ids (B, T) to vectors (B, T, C).

    With ``padding_idx`` that row starts at zero and takes no gradient from the lookup (a tied output projection still
    trains it). ``normalize`` divides each vector by its Euclidean length, as the contrastive head wants it.
    ``zero_beyond`` is zero masking: ids from V on, and positions of ``masked`` (B, T), become zero vectors.
    """

    def __init__(
        self, vocab: int, dim: int, padding_idx: int | None, *, normalize: bool = False, zero_beyond: bool = False
    ) -> None:
        super().__init__(vocab, dim, padding_idx)
        self.normalize = normalize
        self.zero_beyond = zero_beyond

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if self.zero_beyond:
            beyond = ids >= self.num_embeddings
            masked = beyond if masked is None else masked | beyond
            ids = ids.clamp(max=self.num_embeddings - 1)
        x = super().forward(ids)
        x = F.normalize(x, dim=-1) if self.normalize else x
        return x if masked is None else mask_out(x, masked)


def mask_out(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` (B, T, C) with zero vectors where ``mask`` (B, T) is True."""
    return x * (~mask).to(x.dtype).unsqueeze(-1)


def position_ids_from_padding(padding: Tensor, padding_idx: int) -> Tensor:
    """(B, T) rows of a position table: padding_idx + 1, + 2, ... along the real tokens, ``padding_idx`` at padding.

    ``padding`` is (B, T), True = padding; padding in the middle of a sequence is not counted.
    """
    real = (~padding).to(torch.long)
    return torch.cumsum(real, dim=1) * real + padding_idx


def PositionalEmbedding(num_embeddings: int, embedding_dim: int, padding_idx: int, learned: bool = False) -> nn.Module:
    """Learned or sinusoidal positions for inputs of up to ``num_embeddings`` tokens."""
    variant = POSITIONS.get("learned" if learned else "sinusoidal")
    return variant(num_embeddings + padding_idx + 1, embedding_dim, padding_idx)
