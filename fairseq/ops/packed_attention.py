"""Attention within each of several sequences that lie one after the other, without padding between them.

``torch.ops.fairseq.packed_attention_forward`` and ``_backward`` are what ``fairseq.ops.alibi_attention`` is for a padded
batch: the same bias, dropout and derivative, for rows of non-padding tokens only.

Legend: H heads, N tokens of all sequences, n those of one, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    slopes: Tensor,
    asymmetrical: bool = False,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Attention with linear biases within each sequence; gives (1, H, N, D), in memory (1, N, H, D).

    Args:
        q, k, v: (1, H, N, D) of one floating-point type.
        lengths: n of every sequence, at least 1; together N.
        slopes, asymmetrical, dropout_p: see ``alibi_attention``.
        seed: of the dropout mask; sequence b has that of a batch of its own with ``seed + b``.

    Raises:
        ValueError: shapes, types or lengths that do not fit.
    """
    fits = q.dim() == 4 and q.size(0) == 1 and q.shape == k.shape == v.shape and slopes.shape == q.shape[1:2]
    if not (fits and q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        shapes = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in (q, k, v, slopes))
        raise ValueError(f"`q`, `k`, `v` must be (1, H, N, D) of one type and `slopes` (H,), but are {shapes} instead")
    if min(lengths, default=0) < 1 or sum(lengths) != q.size(2):
        raise ValueError(
            f"`lengths` must be positive and add up to {q.size(2)} tokens, but the least is {min(lengths, default=0)} and "
            f"the sum {sum(lengths)}"
        )
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    forward = torch.ops.fairseq.packed_attention_forward.default
    return forward(q, k, v, lengths, slopes, asymmetrical, dropout_p, seed)[0]


def _sequences(lengths: Sequence[int], *tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """Number of every sequence, and its part of tensors whose tokens are dimension 2."""
    start = 0
    for number, length in enumerate(lengths):
        yield number, [x.narrow(2, start, length) for x in tensors]
        start += length


def _empty(q: Tensor) -> Tensor:
    _, heads, tokens, width = q.shape
    return q.new_empty(1, tokens, heads, width).transpose(1, 2)


def _forward_fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _backward_fake(grad: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(q), _empty(q)


def forward_by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    slopes: Tensor,
    asymmetrical: bool,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output (1, H, N, D) and the logarithm of the sum of exponentials of each row (1, H, N)."""
    out, lse = _forward_fake(q)
    operator = torch.ops.fairseq.alibi_attention_forward.default
    for number, (a, b, c, to, logs) in _sequences(lengths, q, k, v, out, lse):
        mixed, sums = operator(a, b, c, slopes, asymmetrical, None, dropout_p, seed + number if dropout_p else seed)
        to.copy_(mixed)
        logs.copy_(sums)
    return out, lse


def backward_by_sequence(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: Sequence[int],
    slopes: Tensor,
    asymmetrical: bool,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for the gradient of the output."""
    grads = _backward_fake(grad, q)
    operator = torch.ops.fairseq.alibi_attention_backward.default
    for number, parts in _sequences(lengths, grad, q, k, v, out, lse, *grads):
        given, wanted = parts[:6], parts[6:]
        found = operator(*given, slopes, asymmetrical, None, dropout_p, seed + number if dropout_p else seed)
        for to, x in zip(wanted, found, strict=True):
            to.copy_(x)
    return grads


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.lengths, slopes, ctx.asymmetrical, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, slopes, seed)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, slopes, seed = ctx.saved_tensors
    operator = torch.ops.fairseq.packed_attention_backward.default
    dq, dk, dv = operator(grad, *tensors, ctx.lengths, slopes, ctx.asymmetrical, ctx.dropout_p, seed)
    return dq, dk, dv, None, None, None, None, None


_QKV = "Tensor q, Tensor k, Tensor v"
_EXTRAS = "int[] lengths, Tensor slopes, bool asymmetrical, float dropout_p, Tensor seed"
library.define(f"packed_attention_forward({_QKV}, {_EXTRAS}) -> (Tensor, Tensor)", forward_by_sequence, _forward_fake)
library.define(
    f"packed_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_EXTRAS}) -> (Tensor, Tensor, Tensor)",
    backward_by_sequence,
    _backward_fake,
)
torch.library.register_autograd("fairseq::packed_attention_forward", _backward, setup_context=_keep_for_backward)
library.load()
