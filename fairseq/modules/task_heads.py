"""Heads for tasks on sentences, on spans of the input and on tokens.

Legend: B batch, T tokens, C channels, I inner width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.errors import OutOfScopeError
from fairseq.modules.feed_forward import get_activation_fn
from fairseq.registry import HEADS


def pool(features: Tensor, pooling: str, padding_mask: Tensor | None = None) -> Tensor:
    """Features (B, T, C) of tokens to (B, C): the first token's, the mean of all, or the mean without padding.

    ``padding_mask`` (B, T) is True at padding; None: there is none. ``mean`` counts padding like any token, as the code
    that used it did, so that its result depends on the batch; ``masked_mean`` does not.
    """
    if pooling == "first":
        return features[:, 0, :]
    if pooling == "mean" or padding_mask is None:
        return features.mean(dim=1)
    kept = padding_mask.logical_not().unsqueeze(-1).to(features.dtype)
    return (features * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


@HEADS.register("classification")
class RobertaClassificationHead(nn.Module):
    """Logits (B, K) of features (B, T, C): pooling, dropout, dense, activation, dropout, projection.

    ``q_noise`` and ``qn_block_size`` are accepted for old callers; quantization noise other than 0 is out of scope.
    """

    skips_padding = True

    def __init__(
        self,
        input_dim: int,
        inner_dim: int,
        num_classes: int,
        activation_fn: str,
        pooler_dropout: float,
        q_noise: float = 0,
        qn_block_size: int = 8,
        do_spectral_norm: bool = False,
        pooling: str = "first",
        input_dropout: bool = True,
    ) -> None:
        super().__init__()
        if q_noise:
            raise OutOfScopeError(f"quantization noise is out of scope: q_noise must be 0, but is {q_noise} instead")
        self.input_dropout = input_dropout
        self.dense = nn.Linear(input_dim, inner_dim)
        self.activation_fn = get_activation_fn(activation_fn)
        self.dropout = nn.Dropout(p=pooler_dropout)
        self.out_proj = nn.Linear(inner_dim, num_classes)
        self.pooling = pooling
        if do_spectral_norm:
            # The old form, because its parameters are the ones in old files: weight_orig, weight_u, weight_v.
            self.out_proj = nn.utils.spectral_norm(self.out_proj)

    def reads(self, padding: Tensor) -> Tensor | None:
        """Where features are read, (B, T) for ``padding`` (B, T), or None for everywhere; others need not be computed."""
        if self.pooling == "mean":
            return None
        if self.pooling == "masked_mean":
            return ~padding
        return (torch.arange(padding.size(1), device=padding.device) == 0).expand(padding.shape)

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """``padding_mask`` (B, T) is True at padding."""
        x = pool(features, self.pooling, padding_mask)
        x = self.dropout(x) if self.input_dropout else x
        x = self.dropout(self.activation_fn(self.dense(x)))
        return self.out_proj(x)


@HEADS.register("span")
class SpanHead(nn.Module):
    """Logits (B, T, 2) from features (B, T, C): how well a span begins (0) and ends (1) at each token.

    One projection without dropout, as BERT (arXiv 1810.04805, section 4.2) and BiGS have it.
    """

    skips_padding = True

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.out_proj = nn.Linear(input_dim, 2)

    def reads(self, padding: Tensor) -> Tensor:
        return ~padding

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.out_proj(features)


@HEADS.register("token")
class TokenHead(nn.Module):
    """Logits (B, T, K) from features (B, T, C): dropout and one projection."""

    skips_padding = True

    def __init__(self, input_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        self.out_proj = nn.Linear(input_dim, num_classes)

    def reads(self, padding: Tensor) -> Tensor:
        return ~padding

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.out_proj(self.dropout(features))
