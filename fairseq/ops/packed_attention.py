"""Attention within each of several sequences that lie one after the other, without padding between them.

``torch.ops.fairseq.packed_attention_forward`` and ``_backward`` are what ``fairseq.ops.attention`` is for a padded
batch: the same terms, dropout and derivative, for rows of non-padding tokens only.

Legend: H heads, N tokens of all sequences, n those of one, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.alibi_attention import term_name
from fairseq.ops.score_terms import TERMS


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
    return packed(q, k, v, lengths, term_name(asymmetrical), [slopes], dropout_p, seed)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    term: str,
    parameters: list[Tensor],
    dropout_p: float,
    seed: int | Tensor,
) -> Tensor:
    """As ``packed_attention``, with a term of ``fairseq.ops.score_terms`` for all tokens."""
    if min(lengths, default=0) < 1 or sum(lengths) != q.size(2):
        raise ValueError(
            f"`lengths` must be positive and add up to {q.size(2)} tokens, but the least is {min(lengths, default=0)} and "
            f"the sum {sum(lengths)}"
        )
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    forward = torch.ops.fairseq.packed_attention_forward.default
    return forward(q, k, v, lengths, term, parameters, dropout_p, seed)[0]


@dataclass(frozen=True)
class _Sequence:
    number: int
    start: int
    length: int

    def of(self, *tensors: Tensor) -> list[Tensor]:
        """Its part of tensors whose tokens are dimension 2."""
        return [x.narrow(2, self.start, self.length) for x in tensors]

    def seed(self, seed: Tensor, dropout_p: float) -> Tensor:
        return seed + self.number if dropout_p else seed


def _sequences(lengths: Sequence[int]) -> Iterator[_Sequence]:
    start = 0
    for number, length in enumerate(lengths):
        yield _Sequence(number, start, length)
        start += length


def _empty(q: Tensor) -> Tensor:
    _, heads, tokens, width = q.shape
    return q.new_empty(1, tokens, heads, width).transpose(1, 2)


def _forward_fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: Sequence[int],
    term: str,
    parameters: list[Tensor],
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dparameters = [x.new_empty(x.shape if TERMS[term].trained else 0) for x in parameters]
    return _empty(q), _empty(q), _empty(q), dparameters


def forward_by_sequence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    term: str,
    parameters: list[Tensor],
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output (1, H, N, D) and the logarithm of the sum of exponentials of each row (1, H, N)."""
    out, lse = _forward_fake(q)
    operator = torch.ops.fairseq.attention_forward.default
    for one in _sequences(lengths):
        own = TERMS[term].part(parameters, one.start, one.length)
        found = operator(*one.of(q, k, v), term, own, None, dropout_p, one.seed(seed, dropout_p))
        for to, x in zip(one.of(out, lse), found, strict=True):
            to.copy_(x)
    return out, lse


def backward_by_sequence(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lengths: Sequence[int],
    term: str,
    parameters: list[Tensor],
    dropout_p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of q, k, v and the term's parameters for the gradient of the output."""
    dq, dk, dv, dparameters = grads = _backward_fake(grad, q, k, v, out, lse, lengths, term, parameters)
    operator = torch.ops.fairseq.attention_backward.default
    for one in _sequences(lengths):
        own = TERMS[term].part(parameters, one.start, one.length)
        upstream, *given = one.of(grad, q, k, v, out, lse)
        *found, terms = operator(upstream, None, *given, term, own, None, dropout_p, one.seed(seed, dropout_p))
        wanted = one.of(dq, dk, dv)
        if TERMS[term].trained:
            wanted, found = wanted + TERMS[term].part(dparameters, one.start, one.length), found + terms
        for to, x in zip(wanted, found, strict=True):
            to.copy_(x)
    return grads


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.lengths, ctx.term, parameters, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, seed, *parameters)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, out, lse, seed, *parameters = ctx.saved_tensors
    operator = torch.ops.fairseq.packed_attention_backward.default
    dq, dk, dv, found = operator(grad, q, k, v, out, lse, ctx.lengths, ctx.term, parameters, ctx.dropout_p, seed)
    trained = TERMS[ctx.term].trained
    return dq, dk, dv, None, None, [x if trained else None for x in found], None, None


_QKV = "Tensor q, Tensor k, Tensor v"
_EXTRAS = "int[] lengths, str term, Tensor[] parameters, float dropout_p, Tensor seed"
library.define(f"packed_attention_forward({_QKV}, {_EXTRAS}) -> (Tensor, Tensor)", forward_by_sequence, _forward_fake)
library.define(
    f"packed_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_EXTRAS}) "
    "-> (Tensor, Tensor, Tensor, Tensor[])",
    backward_by_sequence,
    _backward_fake,
)
torch.library.register_autograd("fairseq::packed_attention_forward", _backward, setup_context=_keep_for_backward)
library.load()
