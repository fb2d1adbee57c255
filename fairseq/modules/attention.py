"""Multi-head self-attention.

Legend: B batch, T tokens, C channels, H heads, D head width (C = H D).
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.attention_backends import attend, check_backend
from fairseq.modules.encoder import EncoderContext
from fairseq.modules.feed_forward import Linear
from fairseq.registry import TOKEN_MIXERS


@TOKEN_MIXERS.register("self_attention")
class MultiheadSelfAttention(nn.Module):
    """Every token attends to every token that is no padding; x (B, T, C) -> (B, T, C).

    Projections are registered in the order k, v, q, out, which fixes the order of parameters in optimizer states, and
    initialised as the original does: Xavier uniform, with gain 1/sqrt 2 for k, v and q. ``backend`` is a name of
    ``fairseq.modules.attention_backends``.
    """

    packs = True
    """This mixer also takes the real tokens of a batch as (1, N, C): see `EncoderContext.packing`."""
    selects = True
    """Of hidden states that are not all read, this mixer gives those that are: see `EncoderContext.read`."""

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
        self.backend = check_backend(backend)
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
        mixed = attend(q, k, v, context, self.dropout if self.training else 0.0, self.backend)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, channels)
        return self.out_proj(context.select(mixed))
