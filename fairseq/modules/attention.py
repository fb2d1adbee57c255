"""Multi-head self-attention.

Legend: B batch, T tokens, C channels, H heads, D head width (C = H D).
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.attention_backends import attend, check_backend, finds_starts, queries_like
from fairseq.modules.feed_forward import Linear
from fairseq.modules.initialization import normal_
from fairseq.modules.slots import AttentionBias, ContentBias, EncoderContext, EncoderShape
from fairseq.registry import TOKEN_MIXERS


class MultiheadSelfAttention(nn.Module):
    """Every token attends to every non-padding token; x (B, T, C) -> (B, T, C).

    Projections are registered in the order k, v, q, out, which fixes the order of parameters in optimizer states, and
    first drawn as the original does: Xavier uniform, with gain 1/sqrt 2 for k, v and q. ``backend`` is a name of
    ``fairseq.modules.attention_backends``; ``scale`` is the factor on products of queries and keys, 1/sqrt D for None.
    """

    packs = True
    selects = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        attention_bias: AttentionBias | ContentBias | None = None,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(
                f"the encoder width must be a multiple of the number of attention heads, but {dim} is not one of {num_heads}"
            )
        self.embed_dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.dropout = dropout
        self.backend = check_backend(backend)
        self.k_proj = Linear(dim, dim, bias=bias)
        self.v_proj = Linear(dim, dim, bias=bias)
        self.q_proj = Linear(dim, dim, bias=bias)
        self.out_proj = Linear(dim, dim, bias=bias)
        self.attention_bias = attention_bias
        self.rescale = None if scale is None else scale * self.head_dim**0.5
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
        nn.init.xavier_uniform_(self.out_proj.weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def draw_weights(self) -> None:
        """Query, key and value once more: the original does, and a seed should give the original's weights."""
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            normal_(projection.weight)

    def finds_starts(self, x: Tensor) -> bool:
        """Whether the backend for tokens like ``x`` (B, T, C) takes `EncoderContext.starts`."""
        dropout = self.dropout if self.training else 0.0
        return finds_starts(queries_like(x, self.num_heads, self.head_dim), self.attention_bias, dropout, self.backend)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        batch, tokens, channels = x.shape
        heads = (batch, tokens, self.num_heads, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)
        k = self.k_proj(x).view(heads).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        q = q if self.rescale is None else q * self.rescale
        mixed = attend(
            q,
            k,
            v,
            bias=self.attention_bias,
            padding=context.padding,
            lengths=context.lengths,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
            cache=context.cache,
            token_counts=context.token_counts,
            starts=context.starts,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, channels)
        return self.out_proj(context.keep(mixed))


@TOKEN_MIXERS.register("self_attention")
def self_attention(
    shape: EncoderShape, attention_bias: AttentionBias | ContentBias | None = None, *, scale: float | None = None
) -> MultiheadSelfAttention:
    return MultiheadSelfAttention(
        shape.dim,
        shape.heads,
        dropout=shape.attention_dropout,
        backend=shape.attention_backend,
        attention_bias=attention_bias,
        bias=shape.bias,
        scale=scale,
    )
