"""The head for answers that are spans of the input.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.registry import HEADS


@HEADS.register("span")
class SpanHead(nn.Module):
    """Logits (B, T, 2) from features (B, T, C): how well a span begins (0) and ends (1) at each token.

    One projection without dropout, as BERT (arXiv 1810.04805, section 4.2) and BiGS have it.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.out_proj = nn.Linear(input_dim, 2)

    def reads(self, padding: Tensor) -> Tensor:
        return ~padding

    def forward(self, features: Tensor, **unused: object) -> Tensor:
        return self.out_proj(features)
