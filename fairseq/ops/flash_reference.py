"""The reference implementation of flash-style attention: padded batches through that of ``fairseq.ops.attention``.

Legend: B sequences, H heads, T tokens, N tokens of all packed sequences, D head width, w reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq.ops.alibi_attention import term_name
from fairseq.ops.attention import attention_backward_reference, attention_forward_reference
from fairseq.ops.band_attention import band_parameters


class FlashExtras(NamedTuple):
    """What the operators are given beside q, k and v; see ``fairseq.ops.flash_attention``."""

    slopes: Tensor | None
    asymmetrical: bool
    token_counts: Tensor | None
    starts: Tensor | None
    dropout_p: float
    seed: Tensor
    query_table: Tensor | None = None
    key_table: Tensor | None = None

    @property
    def reach(self) -> int:
        """Of the tables; 0 without."""
        return max((x.size(-1) // 2 for x in (self.query_table, self.key_table) if x is not None), default=0)

    def contiguous(self) -> FlashExtras:
        query, key = (None if x is None else x.contiguous() for x in (self.query_table, self.key_table))
        return self._replace(query_table=query, key_table=key)

    def term(self, q: Tensor, batch: PackedBatch) -> tuple[str, list[Tensor]]:
        """The score term, and its parameters for the padded ``batch``."""
        alibi = [q.new_zeros(q.size(1)) if self.slopes is None else self.slopes]
        if not self.reach:
            return term_name(self.asymmetrical), alibi
        query, key = (None if x is None else batch.pad(x) for x in (self.query_table, self.key_table))
        band = band_parameters(q, query, key)
        return ("band", band) if self.slopes is None else (f"band_{term_name(self.asymmetrical)}", [*band, *alibi])


@dataclass(frozen=True)
class PackedBatch:
    """Packed or padded sequences as a padded batch and back."""

    padding: Tensor | None  # (B, T)
    index: Tensor | None = None  # (B, T): row of the packed token, N for none

    @staticmethod
    def of(tokens: int, counts: Tensor | None, starts: Tensor | None) -> PackedBatch:
        if starts is None:
            at = torch.arange(tokens, device=None if counts is None else counts.device)
            return PackedBatch(None if counts is None else at >= counts[:, None])
        lengths = starts.diff()
        at = torch.arange(int(lengths.max()) if len(lengths) else 0, device=starts.device)
        padding = at >= lengths[:, None]
        return PackedBatch(padding, torch.where(padding, tokens, starts[:-1, None] + at))

    def pad(self, x: Tensor, filler: float = 0.0) -> Tensor:
        """(1, H, N, ...) -> (B, H, T, ...)"""
        if self.index is None:
            return x
        rows = torch.cat([x[0].transpose(0, 1), x.new_full((1, x.size(1), *x.shape[3:]), filler)])  # (N + 1, H, ...)
        return rows[self.index].transpose(1, 2)

    def pack(self, x: Tensor) -> Tensor:
        """(B, H, T, ...) -> (1, H, N, ...)"""
        if self.padding is None or self.index is None:
            return x
        return x.transpose(1, 2)[~self.padding].transpose(0, 1).unsqueeze(0)


def flash_forward_reference(q: Tensor, k: Tensor, v: Tensor, extras: FlashExtras) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D), or (1, H, N, D), and the logarithm of the sum of exponentials of each row."""
    batch = PackedBatch.of(q.size(2), extras.token_counts, extras.starts)
    term = extras.term(q, batch)
    q, k, v = batch.pad(q), batch.pad(k), batch.pad(v)
    out, lse = attention_forward_reference(q, k, v, *term, batch.padding, extras.dropout_p, extras.seed)
    return batch.pack(out), batch.pack(lse).contiguous()


def flash_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, extras: FlashExtras
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and both tables; empty for a table that is not there."""
    batch = PackedBatch.of(q.size(2), extras.token_counts, extras.starts)
    term = extras.term(q, batch)
    grad, q, k, v, out = (batch.pad(x) for x in (grad, q, k, v, out))
    lse = batch.pad(lse, torch.inf)
    padding, p, seed = batch.padding, extras.dropout_p, extras.seed
    dq, dk, dv, found = attention_backward_reference(grad, None, q, k, v, out, lse, *term, padding, p, seed)
    dquery, dkey = q.new_empty(0), q.new_empty(0)
    if extras.query_table is not None:
        dquery = batch.pack(found[0]).contiguous()
    if extras.key_table is not None:
        inside, ends = found[1], found[2].mT
        dkey = batch.pack(torch.cat([ends[..., :1], inside, ends[..., 1:]], dim=-1)).contiguous()
    return batch.pack(dq), batch.pack(dk), batch.pack(dv), dquery, dkey
