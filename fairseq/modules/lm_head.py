"""The masked-LM head of RoBERTa.

Legend: B batch, T tokens, C channels, N projected tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.modules.activations import get_activation_fn
from fairseq.modules.linear import Linear, linear
from fairseq.registry import HEADS


def select(features: Tensor, masked_tokens: Tensor | None) -> Tensor:
    """The rows (N, C) of ``features`` (B, T, C) where ``masked_tokens`` (B, T) is True; all of them, as they are, for None."""
    if masked_tokens is None:
        return features
    rows = masked_tokens.expand(features.shape[:-1]).reshape(-1).nonzero().squeeze(1)
    return features.reshape(-1, features.size(-1)).index_select(0, rows)


@HEADS.register("roberta")
class RobertaLMHead(nn.Module):
    """dense -> activation -> layer norm -> product with the token embeddings (or an own ``weight``) + bias.

    (B, T, C) -> (B, T, V), or (N, V) for the N positions of ``masked_tokens``.
    """

    def __init__(self, embed_dim: int, output_dim: int, activation_fn: str, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.dense = Linear(embed_dim, embed_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.weight = nn.Linear(embed_dim, output_dim, bias=False).weight if weight is None else weight
        self.bias = nn.Parameter(torch.zeros(output_dim))

    def forward(self, features: Tensor, masked_tokens: Tensor | None = None, **unused: object) -> Tensor:
        # Only masked positions are projected: with V far above C this is most of the head's work.
        x = self.layer_norm(self.activation_fn(self.dense(select(features, masked_tokens))))
        return linear(x, self.weight, self.bias)
