"""Token embeddings.

Legend: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """Ids (B, T) to vectors (B, T, C).

    With ``padding_idx`` that row starts at zero and takes no gradient from the lookup (a tied output projection still
    trains it). ``normalize`` divides each vector by its Euclidean length, as the contrastive head wants it.
    ``zero_beyond`` is zero masking: ids from V on, and positions of ``masked`` (B, T), become zero vectors.
    """

    def __init__(
        self, vocab: int, dim: int, padding_idx: int | None, *, normalize: bool = False, zero_beyond: bool = False
    ) -> None:
        super().__init__(vocab, dim, padding_idx)
        self.normalize = normalize
        self.zero_beyond = zero_beyond

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if self.zero_beyond:
            beyond = ids >= self.num_embeddings
            masked = beyond if masked is None else masked | beyond
            ids = ids.clamp(max=self.num_embeddings - 1)
        x = super().forward(ids)
        x = F.normalize(x, dim=-1) if self.normalize else x
        return x if masked is None else mask_out(x, masked)


def mask_out(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` (B, T, C) with zero vectors where ``mask`` (B, T) is True."""
    return x * (~mask).to(x.dtype).unsqueeze(-1)


def position_ids_from_padding(padding: Tensor, padding_idx: int) -> Tensor:
    """(B, T) rows of a position table: padding_idx + 1, + 2, ... along the real tokens, ``padding_idx`` at padding.

    ``padding`` is (B, T), True = padding; padding in the middle of a sequence is not counted.
    """
    real = (~padding).to(torch.long)
    return torch.cumsum(real, dim=1) * real + padding_idx
