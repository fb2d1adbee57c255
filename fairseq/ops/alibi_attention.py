"""Attention with linear biases (ALiBi; Press et al. 2022, arXiv 2108.12409): ``torch.ops.fairseq.alibi_attention``.

Slopes of zero make it attention without a bias. The computation is that of ``fairseq.ops.attention``.

Legend: B sequences, H heads, T tokens, D head width, i query row, j key column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.ops import attention as general
from fairseq.ops.attention import attention, check_tensors


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
    check_tensors(q, k, v, key_padding_mask, dropout_p)
    if slopes.shape != q.shape[1:2]:
        raise ValueError(
            f"`slopes` must be one number for each of {q.size(1)} heads, but has shape {tuple(slopes.shape)}"
        )
    return attention(q, k, v, term_name(asymmetrical), [slopes], key_padding_mask, dropout_p, seed)[0]


def term_name(asymmetrical: bool) -> str:
    """The score term's, in ``fairseq.ops.score_terms.TERMS``."""
    return "alibi_asymmetrical" if asymmetrical else "alibi"


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
    """``fairseq.ops.attention.attention_forward_reference`` with linear biases."""
    return general.attention_forward_reference(
        q, k, v, term_name(asymmetrical), [slopes], key_padding_mask, dropout_p, seed
    )


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
    extras = (term_name(asymmetrical), [slopes], key_padding_mask, dropout_p, seed)
    return general.attention_backward_reference(grad, None, q, k, v, out, lse, *extras)[:3]


torch.library.define(
    "fairseq::alibi_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor slopes, bool asymmetrical, Tensor? key_padding_mask, float dropout_p, int seed) "
    "-> Tensor",
)
torch.library.impl("fairseq::alibi_attention", "CompositeImplicitAutograd", alibi_attention)
