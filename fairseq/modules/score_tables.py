"""Attention whose scores also have numbers by relative position from tables: ``attend_with_tables``.

The fast ways are ``fairseq.ops.band_attention`` and, on CUDA, ``fairseq.ops.flash_attention``, which knows ALiBi beside tables.
The others add a tensor (B, H, T, T) to the scores: the reference implementation, and what is left elsewhere.

Legend: B batch, T tokens, H heads, D head width, N tokens of a packed batch, w reach.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.attention_backends import (
    CHECKS,
    Bias,
    Terms,
    attend,
    attend_triton,
    check_backend,
    difference,
    works_like_eager,
)
from fairseq.modules.attention_bias import ALiBi, alibi_slopes
from fairseq.modules.slots import EncoderContext
from fairseq.ops import flash_attention as flash
from fairseq.ops import library
from fairseq.ops.band_attention import band_attention, band_scores, with_fixed
from fairseq.ops.flash_reference import FlashExtras, flash_forward_reference


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


TRITON = "triton, with tables"


def _auto_backend(q: Tensor, base: Bias | None, lengths_known: bool) -> str:
    """The backend that ``auto`` stands for; ``lengths_known``: on the device of q, or there is nothing to know."""
    if q.device.type == "cpu":
        return "fused" if base is None and library.compiled_for("attention_forward", "cpu") else "eager"
    knows = lengths_known and (base is None or isinstance(base, ALiBi)) and flash.runs(q)
    return "triton" if knows and works_like_eager(TRITON, str(q.device), q.dtype) else "sdpa"


def tables_find_starts(q: Tensor, base: Bias | None, backend: str) -> bool:
    """As ``fairseq.modules.attention_backends.finds_starts``, for attention with tables on top of ``base``."""
    return (_auto_backend(q, base, True) if backend == "auto" else backend) == "triton" and flash.runs(q)


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
    packed = context.lengths is not None
    known = context.starts is not None if packed else context.padding is None or context.token_counts is not None
    name = _auto_backend(q, tables.base, known) if check_backend(backend) == "auto" else backend
    if name == "fused" and tables.base is not None:
        raise ConfigError(
            f"attention backend {name!r} knows no tables of relative positions together with an attention bias: set "
            "model.attention_backend to auto, eager or sdpa"
        )
    if name == "triton":
        return _attend_triton(q, k, v, tables, context, dropout)
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


def _attend_triton(q: Tensor, k: Tensor, v: Tensor, tables: Tables, context: EncoderContext, dropout: float) -> Tensor:
    starts = context.starts
    if starts is None and context.lengths is not None:
        starts = torch.tensor([0, *itertools.accumulate(context.lengths)], dtype=torch.int32, device=q.device)
    terms = Terms(tables.base, context.padding, token_counts=context.token_counts, starts=starts)
    return attend_triton(q, k, v, terms, dropout, with_fixed(q, tables.query, tables.fixed), tables.key)


def _difference(device: str, dtype: torch.dtype) -> float:
    """Of outputs and all gradients from those of the reference implementation in float64, with dropout.

    Padded sequences with ALiBi on top, and packed ones without.
    """
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor([130, 77], dtype=torch.int32, device=device)
    starts = torch.tensor([0, 130, 207], dtype=torch.int32, device=device)
    seed = torch.tensor(0x123456789ABCDEF, device=device)
    slopes = torch.tensor(alibi_slopes(3), device=device)
    worst = []
    for lead, *where in (((2, 3, 150), slopes, True, counts, None), ((1, 3, 207), None, False, None, starts)):
        shapes = [(*lead, width) for width in (64, 64, 64, 64, 11, 11)]
        grad, *numbers = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        found = []
        for function in (torch.ops.fairseq.flash_attention_forward.default, _reference):
            wide = torch.float64 if function is _reference else dtype
            leaves = [x.to(wide).requires_grad_() for x in numbers]
            out = function(*leaves[:3], *where, 0.1, seed, *leaves[3:])[0]
            found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(wide))])
        worst.append(difference(*found))
    return max(worst, key=lambda x: (math.isnan(x), x))


def _reference(q: Tensor, k: Tensor, v: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
    return flash_forward_reference(q, k, v, FlashExtras(*extras))


CHECKS[TRITON] = _difference
