"""Attention with dropout on the CPU, in blocks of queries small enough for the cache.

torch's fused CPU kernel knows no dropout, and its fallback writes several (B, H, T, T) tensors to fresh memory. Here a
block of rows is scored, normalised, dropped and multiplied before the next one, and the backward pass computes the
block again from q, k, v and a seed instead of keeping it: memory grows with T, not with its square. The readable twin
is ``attend_eager`` in ``fairseq.modules.attention``.

Legend: B batch, H heads, T tokens, D head width, R rows (queries) of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fairseq.modules.dropout import keep_mask, rounded
from fairseq.modules.linear import has_native_bfloat16

BLOCK_ELEMENTS = 1 << 21  # scores a block: 8 MB in float32


def _blocks(batch: int, heads: int, tokens: int) -> Iterator[tuple[int, slice]]:
    """(sequence, rows) of every block."""
    rows = max(1, min(tokens, BLOCK_ELEMENTS // max(heads * tokens, 1)))
    for sequence in range(batch):
        for start in range(0, tokens, rows):
            yield sequence, slice(start, min(start + rows, tokens))


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What blocks are computed in: float32 where the processor has no instructions for the model's precision."""
    return dtype if dtype == torch.float64 or (dtype == torch.bfloat16 and has_native_bfloat16()) else torch.float32


class _Block:
    """The rows of one block, in the precision of the computation: what forward and backward have in common."""

    def __init__(
        self, inputs: tuple[Any, ...], sequence: int, rows: slice, generator: torch.Generator, p: float
    ) -> None:
        q, k, v, bias, padding = inputs
        dtype = _compute_dtype(q.dtype)
        self.q = q[sequence, :, rows].to(dtype) * q.size(-1) ** -0.5  # (H, R, D)
        self.k = k[sequence].to(dtype)  # (H, T, D)
        self.v = v[sequence].to(dtype)
        scores = torch.bmm(self.q, self.k.transpose(1, 2))  # (H, R, T)
        if bias is not None:
            scores += bias[:, rows]
        if padding is not None:
            scores.masked_fill_(padding[sequence], torch.finfo(dtype).min)
        # In place. A sequence that is all padding gives zeros, not NaN.
        self.weights = torch.softmax(scores, dim=-1, out=scores)
        if padding is not None:
            self.weights.masked_fill_(padding[sequence], 0.0)
        self.keep = keep_mask(scores.shape, p, dtype, generator)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, padding: Tensor | None, p: float
    ) -> Tensor:
        batch, heads, tokens, width = q.shape
        ctx.p = p
        ctx.seed = int(torch.randint(1 << 62, ()).item())
        ctx.save_for_backward(q, k, v, bias, padding)
        generator = torch.Generator().manual_seed(ctx.seed)
        # Laid out as (B, T, H, D), so that joining the heads again is a view.
        out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
        for b, rows in _blocks(batch, heads, tokens):
            block = _Block((q, k, v, bias, padding), b, rows, generator, p)
            out[b, :, rows] = torch.bmm(block.weights.mul_(block.keep), block.v)
        return out.mul_(_keep_scale(p))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors
        q, bias = inputs[0], inputs[3]
        batch, heads, tokens, width = q.shape
        generator = torch.Generator().manual_seed(ctx.seed)
        dtype = _compute_dtype(q.dtype)
        dq, dk, dv = (torch.zeros(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(3))
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[3] else None
        for b, rows in _blocks(batch, heads, tokens):
            block = _Block(inputs, b, rows, generator, ctx.p)
            out_grad = grad[b, :, rows].to(dtype) * _keep_scale(ctx.p)
            dweights = torch.bmm(out_grad, block.v.transpose(1, 2)).mul_(block.keep)
            dscores = torch._softmax_backward_data(dweights, block.weights, -1, dtype)
            if dbias is not None:
                dbias[:, rows] += dscores
            dq[b, :, rows] = torch.bmm(dscores, block.k).mul_(width**-0.5)
            dk[b] += torch.bmm(dscores.transpose(1, 2), block.q)
            dv[b] += torch.bmm(block.weights.mul_(block.keep).transpose(1, 2), out_grad)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), dbias, None, None


def _keep_scale(p: float) -> float:
    return 1 / (1 - rounded(p)) if rounded(p) < 1 else 0.0


def attend_blocked(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, padding: Tensor | None, dropout: float
) -> Tensor:
    """softmax(q k' / sqrt(D) + bias) v for q, k, v (B, H, T, D), bias (1 or H, T, T), padding (B, T) with True = padding."""
    with torch.autocast("cpu", enabled=False):  # which would round the products of a block
        return _BlockedAttention.apply(q, k, v, bias, padding, dropout)
