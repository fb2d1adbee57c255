"""The head for sentence-level tasks.

Legend: B batch, T tokens, C channels, I inner width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.modules.activations import get_activation_fn
from fairseq.registry import HEADS


@HEADS.register("classification")
class RobertaClassificationHead(nn.Module):
    """Logits (B, K) from the first token of features (B, T, C): dropout, dense, activation, dropout, projection."""

    def __init__(
        self,
        input_dim: int,
        inner_dim: int,
        num_classes: int,
        activation_fn: str,
        pooler_dropout: float,
        do_spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(input_dim, inner_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.dropout = nn.Dropout(p=pooler_dropout)
        self.out_proj = nn.Linear(inner_dim, num_classes)
        if do_spectral_norm:
            # The old form, because its parameters are the ones in old files: weight_orig, weight_u, weight_v.
            self.out_proj = nn.utils.spectral_norm(self.out_proj)

    def forward(self, features: Tensor, **unused: object) -> Tensor:
        x = self.dropout(features[:, 0, :])
        x = self.dropout(self.activation_fn(self.dense(x)))
        return self.out_proj(x)
