"""The feed-forward channel mixer.

Legend: B batch, T tokens, C channels, F inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.modules.activations import get_activation_fn
from fairseq.modules.dropout import dropout
from fairseq.modules.linear import Linear
from fairseq.registry import CHANNEL_MIXERS


@CHANNEL_MIXERS.register("feed_forward")
class FeedForward(nn.Module):
    """fc2(dropout(activation(fc1 x))), position by position; (B, T, C) -> (B, T, F) -> (B, T, C)."""

    # fc1 and fc2 are named as the layer's own in every checkpoint: see EncoderLayer.
    hoisted = True

    def __init__(self, dim: int, inner_dim: int, *, activation: str = "gelu", activation_dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = get_activation_fn(activation)
        self.activation_dropout = activation_dropout
        self.fc1 = Linear(dim, inner_dim)
        self.fc2 = Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        return self.fc2(dropout(x, self.activation_dropout, self.training))
