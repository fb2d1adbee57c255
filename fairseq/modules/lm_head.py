"""Masked-LM heads: RoBERTa's, the contrastive one of CLAP (contrastive language and attention pretraining), a product.

Legend: B batch, T tokens, C channels, N projected tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.feed_forward import Linear, get_activation_fn
from fairseq.modules.slots import EncoderShape
from fairseq.ops.linear import linear
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.registry import LM_HEADS


def select(features: Tensor, masked_tokens: Tensor | None) -> Tensor:
    """The rows (N, C) of ``features`` (B, T, C) where ``masked_tokens`` (B, T) is True; all of them, as they are, for None.

    ``masked_tokens`` may also be the places (N,) of these rows, int64, which need not be counted on the device.
    """
    if masked_tokens is None:
        return features
    rows = masked_tokens
    if rows.dtype is not torch.int64 or rows.dim() != 1:
        rows = masked_tokens.expand(features.shape[:-1]).reshape(-1).nonzero().squeeze(1)
    return features.reshape(-1, features.size(-1)).index_select(0, rows)


def projected_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``linear_cross_entropy``, in the types that autocast chooses for products."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return linear_cross_entropy(hidden, weight, targets, bias, scale)


class RobertaLMHead(nn.Module):
    """dense -> activation -> layer norm -> product with the token embeddings (or an own ``weight``) + bias.

    (B, T, C) -> (B, T, V), or (N, V) for the N positions of ``masked_tokens``. Embeddings of another width than C
    (``embedding_dim``) make it that of everything after the dense layer. With the ``targets`` (N,) of these
    positions the result is the loss instead, summed, in nats, 0-dim; logits are then never kept.
    """

    takes_targets = True
    takes_places = True

    def __init__(
        self,
        embed_dim: int,
        output_dim: int,
        activation_fn: str,
        weight: nn.Parameter | None = None,
        *,
        norm_eps: float = 1e-5,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = embed_dim if embedding_dim is None else embedding_dim
        self.dense = Linear(embed_dim, width)
        self.activation_fn = get_activation_fn(activation_fn)
        self.layer_norm = nn.LayerNorm(width, eps=norm_eps)
        self.weight = nn.Linear(width, output_dim, bias=False).weight if weight is None else weight
        self.bias = nn.Parameter(torch.zeros(output_dim))

    def forward(
        self,
        features: Tensor,
        masked_tokens: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        # Only masked positions are projected: with V far above C this is most of the head's work.
        x = self.layer_norm(self.activation_fn(self.dense(select(features, masked_tokens))))
        if targets is not None:
            return projected_loss(x, self.weight, targets, bias=self.bias)
        return linear(x, self.weight, self.bias)


class ClapHead(nn.Module):
    """beta times the product with the token embeddings: (B, T, C) -> (B, T, V), or (N, V) for ``masked_tokens``.

    ``weight`` (V, C) is that of the token embeddings, its rows scaled to length one if ``normalize``; ``beta`` is a
    trained inverse temperature, one number. No bias, no dense layer, no norm; features are taken as they are. With
    ``targets`` the result is the loss, as for ``RobertaLMHead``.
    """

    takes_targets = True
    takes_places = True

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
    ) -> Tensor:
        weight = F.normalize(self.weight, dim=-1) if self.normalize else self.weight
        if targets is not None:
            return projected_loss(select(features, masked_tokens), weight, targets, scale=self.beta)
        # On the logits, as in the original: on the features it would cost less, but round otherwise.
        return self.beta * linear(select(features, masked_tokens), weight)


class ProductHead(nn.Module):
    """The product of features with the token embeddings (or an own ``weight`` (V, C)), with ``bias`` if asked for.

    (B, T, C) -> (B, T, V), or (N, V) for ``masked_tokens``, or their loss with ``targets``, as for ``RobertaLMHead``.
    """

    takes_targets = True
    takes_places = True

    def __init__(self, dim: int, vocab: int, weight: nn.Parameter | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, vocab, bias=False).weight if weight is None else weight
        self.bias = nn.Parameter(torch.zeros(vocab)) if bias else None

    def forward(
        self,
        features: Tensor,
        masked_tokens: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        x = select(features, masked_tokens)
        if targets is not None:
            return projected_loss(x, self.weight, targets, bias=self.bias)
        return linear(x, self.weight, self.bias)


@LM_HEADS.register("roberta")
def roberta_head(shape: EncoderShape, vocab: int, embeddings: nn.Parameter | None) -> RobertaLMHead:
    return RobertaLMHead(
        shape.dim, vocab, shape.activation, embeddings, norm_eps=shape.norm_eps, embedding_dim=shape.embedding_dim
    )


@LM_HEADS.register("clap")
def clap_head(
    shape: EncoderShape,
    vocab: int,
    embeddings: nn.Parameter | None,
    *,
    initial_beta: float = 1.0,
    normalize: bool = True,
) -> ClapHead:
    if embeddings is None:
        raise ConfigError("the CLAP head compares with the token embeddings, so it cannot have weights of its own")
    return ClapHead(embeddings, initial_beta=initial_beta, normalize=normalize)


@LM_HEADS.register("product")
def product_head(
    shape: EncoderShape, vocab: int, embeddings: nn.Parameter | None, *, bias: bool = False
) -> ProductHead:
    return ProductHead(shape.dim, vocab, embeddings, bias=bias)
