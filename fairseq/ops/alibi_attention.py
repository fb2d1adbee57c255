"""Attention with linear biases: ``torch.ops.fairseq.alibi_attention``, its reference implementation and its derivative.

``softmax(q k' / sqrt(D) + bias) v`` with the bias of ALiBi (Press et al. 2022, arXiv 2108.12409) computed where it is
needed, keys that are padding left out, and dropout of the probabilities. What is kept for the backward pass is q, k, v,
the output and one number a row; probabilities and the dropout mask are computed again from them and the seed. Kernels:
``fairseq/csrc/torch/alibi_attention_cpu.cpp``, ``fairseq/csrc/cuda``; slopes of zero make it attention without a bias.

Legend: B sequences, H heads, T tokens, D head width, i query row, j key column.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library

_HALVES = 8  # keys in a row that a counter of Philox decides about: fairseq/csrc/common/philox.h


def alibi_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    asymmetrical: bool = False,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Attention with linear biases; gives (B, H, T, D), in memory (B, T, H, D).

    Args:
        q, k, v: (B, H, T, D) of one floating-point type; sums are in float32 (float64 for float64).
        slopes: (H,): the bias is -slope times the distance of query and key; no gradient flows to it.
        asymmetrical: the distance to keys ahead (j > i) is shorter by a half.
        key_padding_mask: (B, T) bool, True = padding. A sequence without any key gives zeros.
        dropout_p: probability, rounded to a multiple of 2^-16, with which a key is left out (after the softmax).
        seed: of the dropout mask, which depends on it, the row, the column and the place in the batch only. A tensor
            (one int64 on the device of q) lets a compiled graph draw it.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    _check(q, k, v, slopes, key_padding_mask, dropout_p)
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    forward = torch.ops.fairseq.alibi_attention_forward.default
    return forward(q, k, v, slopes, asymmetrical, key_padding_mask, dropout_p, seed)[0]


def alibi_bias(slopes: Tensor, tokens: int, asymmetrical: bool) -> Tensor:
    """(H, T, T): minus slope times distance."""
    at = torch.arange(tokens, dtype=slopes.dtype, device=slopes.device)
    offset = at - at[:, None]
    distance = torch.where(offset > 0, offset - 0.5 * asymmetrical, -offset)
    return -slopes[:, None, None] * distance


def dropout_factors(weights: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """Like ``weights`` (B, H, T, J): 0 for dropped probabilities, 1 / (1 - p) for the others, p being a multiple of 2^-16.

    Philox4x32-10: counter (j // 8, i, b * H + h, 0), key = (low word of the seed, high word). Half j % 8 of the four
    words, low half of each first, decides about key j, which is kept when those 16 bits reach p * 2^16.
    """
    threshold = int(dropout_p * 65536 + 0.5)
    scale = 65536 / (65536 - threshold) if threshold < 65536 else 0.0
    batch, heads, tokens, columns = weights.shape
    device = seed.device
    words = [
        torch.arange((columns + _HALVES - 1) // _HALVES, device=device),
        torch.arange(tokens, device=device)[:, None],
        torch.arange(batch * heads, device=device)[:, None, None],
        torch.zeros((), dtype=torch.int64, device=device),
    ]
    words = _philox(list(torch.broadcast_tensors(*words)), seed & _MASK, (seed >> 32) & _MASK)
    halves = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16)]
    bits = torch.stack(halves, dim=-1).flatten(-2)
    keep = bits[..., :columns].unflatten(0, (batch, heads)) >= threshold
    return keep.to(weights.dtype) * scale


_MASK = 0xFFFFFFFF


def _philox(counter: list[Tensor], key0: Tensor, key1: Tensor) -> list[Tensor]:
    """Four words of 32 random bits for each counter, all as int64 (whose products wrap around as unsigned ones do)."""
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (second >> 32 & _MASK) ^ b ^ key0, second & _MASK
        c, d = (first >> 32 & _MASK) ^ d ^ key1, first & _MASK
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return [a, b, c, d]


def forward_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    asymmetrical: bool,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D) and the logarithm of the sum of exponentials of each row (B, H, T); differentiable.

    That logarithm is +inf for a row without keys: probabilities exp(score - it) are then zero.
    """
    scores = _scores(q, k, slopes, asymmetrical, key_padding_mask)
    lse = torch.logsumexp(scores, dim=-1)
    lse = torch.where(lse == -torch.inf, torch.inf, lse)
    weights = _dropped(torch.exp(scores - lse[..., None]), dropout_p, seed)
    return _joinable(torch.matmul(weights, v.to(weights.dtype)).to(q.dtype)), lse


def backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    slopes: Tensor,
    asymmetrical: bool,
    key_padding_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v for the gradient of the output."""
    weights = torch.exp(_scores(q, k, slopes, asymmetrical, key_padding_mask) - lse[..., None])
    wide, scale = weights.dtype, q.size(-1) ** -0.5
    up = grad.to(wide)
    dv = torch.matmul(_dropped(weights, dropout_p, seed).transpose(-2, -1), up)
    dweights = _dropped(torch.matmul(up, v.to(wide).transpose(-2, -1)), dropout_p, seed)
    dscores = weights * (dweights - (up * out.to(wide)).sum(-1, keepdim=True)) * scale
    dq, dk = torch.matmul(dscores, k.to(wide)), torch.matmul(dscores.transpose(-2, -1), q.to(wide))
    return _joinable(dq.to(q.dtype)), _joinable(dk.to(q.dtype)), _joinable(dv.to(q.dtype))


def _scores(q: Tensor, k: Tensor, slopes: Tensor, asymmetrical: bool, key_padding_mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.to(wide) * q.size(-1) ** -0.5, k.to(wide).transpose(-2, -1))
    scores = scores + alibi_bias(slopes.to(wide), q.size(-2), asymmetrical)
    return scores if key_padding_mask is None else scores.masked_fill(key_padding_mask[:, None, None], -torch.inf)


def _dropped(weights: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    if dropout_p == 0:
        return weights
    return weights * dropout_factors(weights, dropout_p, seed)


def _joinable(x: Tensor) -> Tensor:
    """``x`` (B, H, T, D) laid out as (B, T, H, D), so that joining the heads is a view."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2).copy_(x)


def _check(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, padding: Tensor | None, dropout_p: float) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"`q`, `k` and `v` must have one shape (B, H, T, D), but have {shapes} instead")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
        raise ValueError(
            f"`q`, `k` and `v` must have one floating-point type, but have {q.dtype}, {k.dtype}, {v.dtype} instead"
        )
    if slopes.shape != q.shape[1:2]:
        raise ValueError(
            f"`slopes` must be one number for each of {q.size(1)} heads, but has shape {tuple(slopes.shape)}"
        )
    if padding is not None and (padding.shape != (q.size(0), q.size(2)) or padding.dtype != torch.bool):
        wanted = (q.size(0), q.size(2))
        raise ValueError(
            f"`key_padding_mask` must be bool of shape {wanted}, but is {padding.dtype} of {tuple(padding.shape)} instead"
        )
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"`dropout_p` must be between 0 and 1, but is {dropout_p} instead")


def _forward_fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
    return out, q.new_empty(batch, heads, tokens, dtype=torch.promote_types(q.dtype, torch.float32))


def _backward_fake(grad: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _forward_fake(q)[0], _forward_fake(q)[0], _forward_fake(q)[0]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, slopes, ctx.asymmetrical, padding, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, slopes, padding, seed)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, slopes, padding, seed = ctx.saved_tensors
    operator = torch.ops.fairseq.alibi_attention_backward.default
    dq, dk, dv = operator(grad, *tensors, slopes, ctx.asymmetrical, padding, ctx.dropout_p, seed)
    return dq, dk, dv, None, None, None, None, None


_QKV = "Tensor q, Tensor k, Tensor v"
_EXTRAS = "Tensor slopes, bool asymmetrical, Tensor? key_padding_mask, float dropout_p"
library.define(
    f"alibi_attention_forward({_QKV}, {_EXTRAS}, Tensor seed) -> (Tensor, Tensor)", forward_reference, _forward_fake
)
library.define(
    f"alibi_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_EXTRAS}, Tensor seed) "
    "-> (Tensor, Tensor, Tensor)",
    backward_reference,
    _backward_fake,
)
torch.library.register_autograd("fairseq::alibi_attention_forward", _backward, setup_context=_keep_for_backward)
torch.library.define("fairseq::alibi_attention", f"({_QKV}, {_EXTRAS}, int seed) -> Tensor")
torch.library.impl("fairseq::alibi_attention", "CompositeImplicitAutograd", alibi_attention)
library.load()
