"""Embeddings of positions and of tokens.

Legend: B batch, T tokens, C channels, P longest input, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError, DataError
from fairseq.modules.slots import EncoderShape
from fairseq.registry import POSITIONS

MAX_OFFSET = 1000  # rows before that of the first position; published models have up to two


def position_ids_from_padding(padding: Tensor, padding_idx: int) -> Tensor:
    """(B, T) rows of a position table: padding_idx + 1, + 2, ... along the non-padding tokens.

    ``padding`` is (B, T), True = padding, where the row is ``padding_idx``; padding in the middle of a sequence is not counted.
    """
    counted = (~padding).to(torch.long)
    return torch.cumsum(counted, dim=1) * counted + padding_idx


class Counting:
    """How the ids of positions follow from the padding of a batch.

    The first token of a sequence has id ``offset``, by default ``padding_idx + 1``: fairseq's tables begin with a row
    for each symbol up to the padding symbol, unused but for the last, which is that of padding and zero. With an offset
    of 0 there is no such row. Ids count the non-padding tokens or, ``by_column``, all tokens.
    """

    padding_idx: int | None
    offset: int
    by_column: bool

    def ids(self, padding: Tensor) -> Tensor:
        """(B, T) for ``padding`` (B, T), True = padding; at padding the padding row, or 0 if there is none."""
        if self.by_column:
            columns = torch.arange(padding.size(1), device=padding.device) + self.offset
            return columns.expand(padding.shape)
        if self.padding_idx == self.offset - 1:
            return position_ids_from_padding(padding, self.offset - 1)
        ids = torch.cumsum((~padding).to(torch.long), dim=1) + (self.offset - 1)
        return ids.masked_fill(padding, self.padding_idx or 0)


class LearnedPositions(nn.Embedding, Counting):
    """A table of P + ``offset`` rows; see `Counting`. The row of padding, if there is one, is zero and stays so."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int,
        *,
        offset: int | None = None,
        by_column: bool = False,
    ) -> None:
        start = padding_idx + 1 if offset is None else offset
        super().__init__(num_embeddings, embedding_dim, padding_idx if padding_idx < start else None)
        self.offset = start
        self.by_column = by_column
        with torch.no_grad():
            nn.init.normal_(self.weight, mean=0.0, std=embedding_dim**-0.5)
            if self.padding_idx is not None:
                self.weight[self.padding_idx].zero_()

    @property
    def max_positions(self) -> int:
        """P: the longest input the table reaches."""
        return self.num_embeddings - self.offset

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
            wrong = f"position id {low}" if low < 0 else f"an input of {high - self.offset + 1} tokens"
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


class FixedTable(nn.Module, Counting):
    """A table that is computed, not trained: float32, outside the state dict, made (or made longer) when first needed."""

    num_embeddings: int
    _table: Tensor | None = None

    def rows(self, count: int) -> Tensor:
        """The first ``count`` rows of the table (count, C) in float32."""
        raise NotImplementedError

    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the model."""
        raise NotImplementedError

    def check(self, position_ids: Tensor, explicit: bool) -> None:
        """Make the table reach the ids; any non-negative id fits."""
        needed = self.num_embeddings
        if explicit and position_ids.device.type != "meta" and position_ids.numel():
            low, high = int(position_ids.min()), int(position_ids.max())
            if low < 0:
                raise DataError(f"position ids must not be negative, but {low} is among them")
            needed = max(needed, high + 1)
        else:
            needed = max(needed, position_ids.size(-1) + self.offset)
        device = self.like().device
        if self._table is None or self._table.size(0) < needed:
            self._table = self.rows(needed).to(device)
        elif self._table.device != device:
            self._table = self._table.to(device)

    def forward(self, position_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        if self._table is None or self._table.device != position_ids.device:
            self.check(position_ids, explicit=True)
        assert self._table is not None
        return self._table[position_ids].to(self.like().dtype)


class SinusoidalPositions(FixedTable):
    """The sines and cosines of `sinusoidal_table`.

    Deviation from the original: a model cast to half and back keeps exact positions, because only what is looked up
    is rounded, not the table.
    """

    _float_tensor: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int,
        *,
        offset: int | None = None,
        by_column: bool = False,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.offset = padding_idx + 1 if offset is None else offset
        self.by_column = by_column
        self.padding_idx = padding_idx if padding_idx < self.offset else None
        # Old checkpoints carry this key; it tells the dtype and device of the model, its value means nothing.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def rows(self, count: int) -> Tensor:
        return sinusoidal_table(count, self.embedding_dim, self.padding_idx)

    def like(self) -> Tensor:
        return self._float_tensor


class ScaledSinusoidalPositions(FixedTable):
    """``scale``, one trained number, times a table of sines and cosines that take turns.

    Column 2i of row p is sin(p w), column 2i + 1 is cos(p w), with w = exp(-2i ln(10000) / C). Row 0 is that of the first
    column of a batch: padding counts as a position, and has no row of its own.
    """

    padding_idx = None
    offset = 0
    by_column = True

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.scale = nn.Parameter(torch.tensor([embedding_dim**-0.5]))

    def rows(self, count: int) -> Tensor:
        columns = torch.arange(0, self.embedding_dim, 2, dtype=torch.float)
        frequencies = torch.exp(columns * (-math.log(10000.0) / self.embedding_dim))
        angles = torch.arange(count, dtype=torch.float).unsqueeze(1) * frequencies
        pairs = torch.stack([torch.sin(angles), torch.cos(angles)], dim=2)
        return pairs.flatten(1)[:, : self.embedding_dim]

    def like(self) -> Tensor:
        return self.scale

    def forward(self, position_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        return self.scale * super().forward(position_ids)


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


def given_ids(name: str, ids: Tensor, padding: Tensor) -> Tensor:
    """``ids``, which a caller gave for a batch with ``padding`` (B, T), as (B, T). Raises DataError."""
    if ids.is_floating_point() or ids.dtype is torch.bool:
        raise DataError(f"{name} must be integers, but are of type {str(ids.dtype).removeprefix('torch.')}")
    sizes = zip(reversed(ids.shape), reversed(padding.shape), strict=False)
    if ids.dim() > padding.dim() or any(own not in (1, wanted) for own, wanted in sizes):
        shapes = f"{tuple(padding.shape)}, but have {tuple(ids.shape)}"
        raise DataError(f"{name} must have the shape of the tokens, {shapes}")
    return ids.expand(padding.shape)


def token_types(ids: Tensor | None, padding: Tensor, count: int, limits: tuple[int, int] | None = None) -> Tensor:
    """``ids`` (B, T) of token types, zero for None, of a batch with ``padding`` (B, T). Raises DataError.

    ``limits``: the least and the highest, where they are known; otherwise they are looked for.
    """
    if ids is None:
        return torch.zeros_like(padding, dtype=torch.long)
    ids = given_ids("token_type_ids", ids, padding)
    if not torch.compiler.is_compiling() and ids.device.type != "meta" and ids.numel():
        low, high = (int(ids.min()), int(ids.max())) if limits is None else limits
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise DataError(
                f"token_type_ids must lie between 0 and {count - 1}, but {wrong} is among them (model.type_vocab_size)"
            )
    return ids


def mask_out(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` (B, T, C) with zero vectors where ``mask`` (B, T) is True."""
    return x * (~mask).to(x.dtype).unsqueeze(-1)


def _rows(shape: EncoderShape, name: str, offset: int | None) -> int:
    if offset is not None and not 0 <= offset <= MAX_OFFSET:
        raise ConfigError(f"model.{name}_offset must lie between 0 and {MAX_OFFSET}, but is {offset} instead")
    return shape.max_positions + (shape.padding_idx + 1 if offset is None else offset)


@POSITIONS.register("learned")
def learned(shape: EncoderShape, *, offset: int | None = None, by_column: bool = False) -> LearnedPositions:
    rows = _rows(shape, "learned", offset)
    return LearnedPositions(rows, shape.dim, shape.padding_idx, offset=offset, by_column=by_column)


@POSITIONS.register("sinusoidal")
def sinusoidal(shape: EncoderShape, *, offset: int | None = None, by_column: bool = False) -> SinusoidalPositions:
    rows = _rows(shape, "sinusoidal", offset)
    return SinusoidalPositions(rows, shape.dim, shape.padding_idx, offset=offset, by_column=by_column)


@POSITIONS.register("scaled_sinusoidal")
def scaled_sinusoidal(shape: EncoderShape) -> ScaledSinusoidalPositions:
    return ScaledSinusoidalPositions(shape.max_positions, shape.dim)


@POSITIONS.register("none")
def no_positions(shape: EncoderShape) -> None:
    """Order comes from elsewhere, or nowhere."""
