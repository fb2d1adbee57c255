"""Attention whose scores also have numbers by relative position from tables: ``attend_with_tables``.

The fast way is ``fairseq.ops.band_attention``. The others add a tensor (B, H, T, T) to the scores: the reference
implementation, and what devices without a kernel for tables have.

Legend: B batch, T tokens, H heads, D head width, N tokens of a packed batch, w reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.attention_backends import Bias, Terms, attend, check_backend
from fairseq.modules.slots import EncoderContext
from fairseq.ops import library
from fairseq.ops.band_attention import band_attention, band_scores


@dataclass(frozen=True, eq=False)
class Tables:
    """Numbers by offset, up to w; see ``band_attention``. On top of them ``base``, another bias of the scores.

    query: (B, H, T, 2w + 1), of query i for offset j - i; key: the same, of key j for offset i - j; fixed: (H, 2w + 1), for
    offset j - i.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    fixed: Tensor | None = None
    base: Bias | None = None

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """As a `ContentBias` has it: (B, H, T, T)."""
        scores = band_scores(q, self.query, self.key, self.fixed)
        base = Terms(self.base, longest=q.size(-2)).dense(q, k)
        return scores if base is None else scores + base

    def part(self, start: int, length: int) -> Tables:
        """Of the packed tokens ``start`` to ``start + length``."""
        query, key = (None if x is None else x.narrow(2, start, length) for x in (self.query, self.key))
        return replace(self, query=query, key=key)


def _auto_backend(q: Tensor, tables: Tables) -> str:
    """The backend that ``auto`` stands for."""
    if q.device.type == "cpu":
        return "fused" if tables.base is None and library.compiled_for("attention_forward", "cpu") else "eager"
    return "sdpa"


def attend_with_tables(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    tables: Tables,
    context: EncoderContext,
    *,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention of q, k, v (B, H, T, D), or packed (1, H, N, D), with ``tables`` in the scores.

    Without queries or keys (None) the tables are the scores, no products.
    """
    if q is None or k is None:
        q = k = torch.zeros_like(v)
    name = _auto_backend(q, tables) if check_backend(backend) == "auto" else backend
    if name == "triton" or (name == "fused" and tables.base is not None):
        with_bias = "" if tables.base is None else " together with an attention bias"
        raise ConfigError(
            f"attention backend {name!r} knows no tables of relative positions{with_bias}: set model.attention_backend to "
            "auto, eager or sdpa"
        )
    if name == "fused":
        seed = torch.randint(1 << 62, (), device=q.device) if dropout > 0 else 0
        return band_attention(
            q, k, v, tables.query, tables.key, tables.fixed, context.padding, dropout, seed, context.lengths
        )
    if context.lengths is None:
        return attend(q, k, v, bias=tables, padding=context.padding, dropout=dropout, backend=name)
    mixed, start = [], 0
    for length in context.lengths:
        parts = (x.narrow(2, start, length) for x in (q, k, v))
        mixed.append(attend(*parts, bias=tables.part(start, length), dropout=dropout, backend=name).transpose(1, 2))
        start += length
    return torch.cat(mixed, dim=1).transpose(1, 2)
