"""The head that labels every token.

Legend: B batch, T tokens, C channels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.registry import HEADS


@HEADS.register("token")
class TokenHead(nn.Module):
    """Logits (B, T, K) from features (B, T, C): dropout and one projection."""

    def __init__(self, input_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        self.out_proj = nn.Linear(input_dim, num_classes)

    def reads(self, padding: Tensor) -> Tensor:
        return ~padding

    def forward(self, features: Tensor, **unused: object) -> Tensor:
        return self.out_proj(self.dropout(features))
