"""Token embeddings.

Legend: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """Ids (B, T) to vectors (B, T, C), optionally of length one.

    With ``padding_idx`` that row starts at zero and takes no gradient from the lookup (a tied output projection still
    trains it). ``normalize`` divides each vector by its Euclidean length, as the contrastive head wants it.
    """

    def __init__(self, vocab: int, dim: int, padding_idx: int | None, *, normalize: bool = False) -> None:
        super().__init__(vocab, dim, padding_idx)
        self.normalize = normalize

    def forward(self, ids: Tensor) -> Tensor:
        x = super().forward(ids)
        return F.normalize(x, dim=-1) if self.normalize else x


def mask_out(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` (B, T, C) with zero vectors where ``mask`` (B, T) is True."""
    return x * (~mask).to(x.dtype).unsqueeze(-1)


def position_ids_from_padding(padding: Tensor, padding_idx: int) -> Tensor:
    """(B, T) rows of a position table: padding_idx + 1, + 2, ... along the real tokens, ``padding_idx`` at padding.

    ``padding`` is (B, T), True = padding; padding in the middle of a sequence is not counted.
    """
    real = (~padding).to(torch.long)
    return torch.cumsum(real, dim=1) * real + padding_idx
