"""Attention with a score term: ``torch.ops.fairseq.attention_forward``, its reference implementation and its derivative.

``softmax(q k' / sqrt(D) + term) v``, the term (``fairseq.ops.score_terms``) computed where it is needed, keys that are
padding left out, and dropout of the probabilities. What is kept for the backward pass is q, k, v, the term's parameters,
the output and one number a row; probabilities and the dropout mask are computed again from them and the seed. Kernels:
``fairseq/csrc/torch/attention_cpu.cpp``, ``fairseq/csrc/cuda``.

Users call ``fairseq.ops.alibi_attention`` or ``fairseq.ops.band_attention``.

Legend: B sequences, H heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.dropout_mask import dropout_factors
from fairseq.ops.score_terms import TERMS


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    term: str,
    parameters: list[Tensor],
    key_padding_mask: Tensor | None,
    dropout_p: float,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """The output and the logarithms of row sums (see ``attention_forward_reference``); callers check (``check_tensors``)."""
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    operator = torch.ops.fairseq.attention_forward.default
    return operator(q, k, v, term, parameters, key_padding_mask, dropout_p, seed)


def attention_forward_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    term: str,
    parameters: list[Tensor],
    key_padding_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D) and the logarithm of the sum of exponentials of each row (B, H, T); differentiable.

    That logarithm is +inf for a row without keys: probabilities exp(score - it) are then zero.
    """
    with torch.autocast(q.device.type, enabled=False):
        scores = _scores(q, k, term, parameters, key_padding_mask)
        lse = torch.logsumexp(scores, dim=-1)
        lse = torch.where(lse == -torch.inf, torch.inf, lse)
        weights = _dropped(torch.exp(scores - lse[..., None]), dropout_p, seed)
        return _joinable(torch.matmul(weights, v.to(weights.dtype)).to(q.dtype)), lse


def attention_backward_reference(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    term: str,
    parameters: list[Tensor],
    key_padding_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and the term's parameters for those of the output and of ``lse``."""
    with torch.autocast(q.device.type, enabled=False):
        weights = torch.exp(_scores(q, k, term, parameters, key_padding_mask) - lse[..., None])
        wide, scale = weights.dtype, q.size(-1) ** -0.5
        up = grad.to(wide)
        dv = torch.matmul(_dropped(weights, dropout_p, seed).transpose(-2, -1), up)
        dweights = _dropped(torch.matmul(up, v.to(wide).transpose(-2, -1)), dropout_p, seed)
        delta = (up * out.to(wide)).sum(-1)
        if grad_lse is not None:
            delta = delta - grad_lse
        dadded = weights * (dweights - delta[..., None])
        dscores = dadded * scale
        dq, dk = torch.matmul(dscores, k.to(wide)), torch.matmul(dscores.transpose(-2, -1), q.to(wide))
        dparameters = [x.new_zeros(0) for x in parameters]
        if TERMS[term].trained:
            found = TERMS[term].gradients(parameters, dadded)
            dparameters = [x.to(like.dtype) for x, like in zip(found, parameters, strict=True)]
        return _joinable(dq.to(q.dtype)), _joinable(dk.to(q.dtype)), _joinable(dv.to(q.dtype)), dparameters


def _scores(q: Tensor, k: Tensor, term: str, parameters: list[Tensor], key_padding_mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q.to(wide) * q.size(-1) ** -0.5, k.to(wide).transpose(-2, -1))
    scores = scores + TERMS[term].scores([x.to(wide) for x in parameters], q.size(-2))
    return scores if key_padding_mask is None else scores.masked_fill(key_padding_mask[:, None, None], -torch.inf)


def _dropped(weights: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    if dropout_p == 0:
        return weights
    return weights * dropout_factors(weights, dropout_p, seed)


def _joinable(x: Tensor) -> Tensor:
    """``x`` (B, H, T, D) laid out as (B, T, H, D), so that joining the heads is a view."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2).copy_(x)


def check_tensors(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, dropout_p: float) -> None:
    """ValueError, in words for users, where these do not fit together."""
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"`q`, `k` and `v` must have one shape (B, H, T, D), but have {shapes} instead")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
        raise ValueError(
            f"`q`, `k` and `v` must have one floating-point type, but have {q.dtype}, {k.dtype}, {v.dtype} instead"
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


def _backward_fake(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    term: str,
    parameters: list[Tensor],
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dparameters = [x.new_empty(x.shape if TERMS[term].trained else 0) for x in parameters]
    return _forward_fake(q)[0], _forward_fake(q)[0], _forward_fake(q)[0], dparameters


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.term, parameters, padding, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, padding, seed, *parameters)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, padding, seed, *parameters = ctx.saved_tensors
    operator = torch.ops.fairseq.attention_backward.default
    grad = torch.zeros_like(out) if grad is None else grad
    dq, dk, dv, dparameters = operator(
        grad, grad_lse, q, k, v, out, lse, ctx.term, parameters, padding, ctx.dropout_p, seed
    )
    trained = TERMS[ctx.term].trained
    return dq, dk, dv, None, [x if trained else None for x in dparameters], None, None, None


_QKV = "Tensor q, Tensor k, Tensor v"
_EXTRAS = "str term, Tensor[] parameters, Tensor? key_padding_mask, float dropout_p, Tensor seed"
_FORWARD = f"({_QKV}, {_EXTRAS}) -> (Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad, Tensor? grad_lse, {_QKV}, Tensor out, Tensor lse, {_EXTRAS}) -> (Tensor, Tensor, Tensor, Tensor[])"
)
library.define(f"attention_forward{_FORWARD}", attention_forward_reference, _forward_fake)
library.define(f"attention_backward{_BACKWARD}", attention_backward_reference, _backward_fake)
# What compiled kernels call for types that they do not have.
library.define(f"attention_forward_reference{_FORWARD}", attention_forward_reference, _forward_fake)
library.define(f"attention_backward_reference{_BACKWARD}", attention_backward_reference, _backward_fake)
torch.library.register_autograd("fairseq::attention_forward", _backward, setup_context=_keep_for_backward)
library.load()
