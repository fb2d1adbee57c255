"""Multi-head self-attention.

Legend: B batch, T tokens, C channels, H heads, D head width (C = H D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.blocked_attention import attend_blocked
from fairseq.modules.context import EncoderContext
from fairseq.modules.dropout import dropout as drop
from fairseq.modules.linear import Linear
from fairseq.registry import TOKEN_MIXERS


def attend_eager(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """The readable twin: softmax(q k' / sqrt(D) + bias, padded keys left out) v; all (B, H, T, D).

    The bias (1 or H, T, T) is broadcast over the batch. A sequence that is all padding gives zeros.
    """
    scores = torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-2, -1))  # (B, H, T, T)
    bias = context.dense_bias(q)
    if bias is not None:
        scores = scores + bias
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    if context.padding is not None:
        padded = context.padding[:, None, None, :]
        # The lowest finite number, not -inf, keeps sequences without any key free of NaN, gradients included.
        scores = scores.masked_fill(padded, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32).masked_fill(padded, 0.0)
    else:
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32)
    weights = drop(weights.to(v.dtype), dropout, training=dropout > 0)
    return torch.matmul(weights, v)


def attend(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """``attend_eager`` by the quickest way there is: torch's kernels know neither a broadcast bias with padding nor,
    on the CPU, dropout."""
    if dropout > 0 and q.device.type == "cpu" and not torch.compiler.is_compiling():
        return attend_blocked(q, k, v, context.dense_bias(q), context.padding, dropout)
    if context.attention_bias is not None:
        return attend_eager(q, k, v, context, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=context.key_mask(), dropout_p=dropout)


@TOKEN_MIXERS.register("self_attention")
class MultiheadSelfAttention(nn.Module):
    """Every token attends to every token that is no padding; x (B, T, C) -> (B, T, C).

    Projections are registered in the order k, v, q, out, which fixes the order of parameters in optimizer states, and
    initialised as the original does: Xavier uniform, with gain 1/sqrt 2 for k, v and q.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, backend: str = "auto") -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                f"the encoder width must be a multiple of the number of attention heads, but {dim} is not one of {num_heads}"
            )
        self.embed_dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.dropout = dropout
        self.backend = backend
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        batch, tokens, channels = x.shape
        heads = (batch, tokens, self.num_heads, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        k = self.k_proj(x).view(heads).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        mixed = attend(q, k, v, context, self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))
