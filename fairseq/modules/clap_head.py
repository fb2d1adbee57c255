"""The contrastive head of CLAP, the contrastive language and attention pretraining of the ALiBi fork.

Legend: B batch, T tokens, C channels, N projected tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.modules.linear import linear
from fairseq.modules.lm_head import select, summed_loss
from fairseq.registry import HEADS


@HEADS.register("clap")
class ClapHead(nn.Module):
    """beta times the product with the token embeddings: (B, T, C) -> (B, T, V), or (N, V) for ``masked_tokens``.

    ``weight`` (V, C) is that of the token embeddings, its rows scaled to length one if ``normalize``; ``beta`` is a
    trained inverse temperature, one number. No bias, no dense layer, no norm; features are taken as they are. With
    ``targets`` the result is the loss, as for ``RobertaLMHead``.
    """

    takes_targets = True

    def __init__(self, weight: nn.Parameter, *, initial_beta: float = 1.0, normalize: bool = True) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(float(initial_beta)))
        self.weight = weight
        self.normalize = normalize

    def forward(
        self,
        features: Tensor,
        masked_tokens: Tensor | None = None,
        targets: Tensor | None = None,
        **unused: object,
    ) -> Tensor:
        weight = F.normalize(self.weight, dim=-1) if self.normalize else self.weight
        if targets is not None:
            return summed_loss(select(features, masked_tokens), weight, targets, scale=self.beta)
        # On the logits, as in the original: on the features it would cost less, but round otherwise.
        return self.beta * linear(select(features, masked_tokens), weight)
