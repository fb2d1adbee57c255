"""Choice of a position embedding by the old name."""

from __future__ import annotations

from torch import nn

from fairseq.registry import POSITIONS


def PositionalEmbedding(num_embeddings: int, embedding_dim: int, padding_idx: int, learned: bool = False) -> nn.Module:
    """Learned or sinusoidal positions for inputs of up to ``num_embeddings`` tokens."""
    variant = POSITIONS.get("learned" if learned else "sinusoidal")
    return variant(num_embeddings + padding_idx + 1, embedding_dim, padding_idx)
