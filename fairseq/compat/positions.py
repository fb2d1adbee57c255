"""Position embeddings with the interface of the original, for plugins: they take ids and count positions themselves.

Those of `fairseq.modules.positions`, which the encoders of this package are built from, take rows of their table.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import DataError
from fairseq.modules.positions import position_ids_from_padding, sinusoidal_table


def rows_of(tokens: Tensor, padding_idx: int) -> Tensor:
    """Rows (B, T) of a position table for ``tokens`` (B, T): from padding_idx + 1 on; that of padding is padding_idx."""
    return position_ids_from_padding(tokens.eq(padding_idx), padding_idx)


class LearnedPositionalEmbedding(nn.Embedding):
    """Ids (B, T) to vectors (B, T, C) of their positions, which are counted from ``padding_idx + 1``.

    Without a ``padding_idx`` the positions have to be given.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.max_positions = num_embeddings if self.padding_idx is None else num_embeddings - self.padding_idx - 1

    def forward(  # type: ignore[override]
        self, input: Tensor, incremental_state: Any = None, positions: Tensor | None = None
    ) -> Tensor:
        """``incremental_state``: ``input`` ends in one new token, and its vector (1, 1, C) is all that is wanted."""
        if positions is None:
            if self.padding_idx is None:
                raise ValueError("a table without padding_idx cannot count positions: give them")
            if incremental_state is not None:
                positions = input.new_full((1, 1), self.padding_idx + input.size(1))
            else:
                positions = rows_of(input, self.padding_idx)
        elif self.padding_idx is not None:
            raise ValueError("positions are counted from padding_idx, so none can be given: make the table without it")
        if input.size(1) > self.max_positions and int(positions.max()) >= self.num_embeddings:
            raise DataError(
                f"an input of {input.size(1)} tokens does not fit the table, which has positions for {self.max_positions}"
            )
        return F.embedding(positions, self.weight, self.padding_idx)


class SinusoidalPositionalEmbedding(nn.Module):
    """Ids (B, T) to sines and cosines (B, T, C) of their positions; see `fairseq.modules.positions.sinusoidal_table`.

    The table is made for ``init_size`` rows, and longer when needed. Can be compiled by ``torch.jit.script``.
    """

    def __init__(self, embedding_dim: int, padding_idx: int | None, init_size: int = 1024) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.padding_idx = 0 if padding_idx is None else padding_idx
        self.weights = self.get_embedding(init_size, embedding_dim, padding_idx)
        self.register_buffer("_float_tensor", torch.zeros(1))
        self.max_positions = int(1e5)

    @staticmethod
    def get_embedding(num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> Tensor:
        return sinusoidal_table(num_embeddings, embedding_dim, padding_idx)

    def forward(
        self,
        input: Tensor,
        incremental_state: Any | None = None,
        timestep: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """As `LearnedPositionalEmbedding.forward`; ``timestep`` is the number of the new token, if not the last."""
        batch, tokens = input.size(0), input.size(1)
        rows = self.padding_idx + 1 + tokens
        if rows > self.weights.size(0):
            self.weights = self.get_embedding(rows, self.embedding_dim, self.padding_idx)
        like: Tensor = self._float_tensor  # type: ignore[assignment]
        self.weights = self.weights.to(like.device)
        if incremental_state is not None:
            place = int(timestep.view(-1)[0]) + 1 if timestep is not None else tokens
            vectors = self.weights[self.padding_idx + place].expand(batch, 1, self.embedding_dim)
        else:
            if positions is None:
                kept = input.ne(self.padding_idx).long()
                positions = torch.cumsum(kept, dim=1) * kept + self.padding_idx
            vectors = self.weights[positions]
        return vectors.to(like.dtype)


def PositionalEmbedding(
    num_embeddings: int, embedding_dim: int, padding_idx: int | None, learned: bool = False
) -> nn.Module:
    """Learned or sinusoidal positions for inputs of up to ``num_embeddings`` tokens."""
    rows = num_embeddings if padding_idx is None else num_embeddings + padding_idx + 1
    if not learned:
        return SinusoidalPositionalEmbedding(embedding_dim, padding_idx, init_size=rows)
    table = LearnedPositionalEmbedding(rows, embedding_dim, padding_idx)
    nn.init.normal_(table.weight, mean=0.0, std=embedding_dim**-0.5)
    if table.padding_idx is not None:
        nn.init.zeros_(table.weight[table.padding_idx])
    return table
