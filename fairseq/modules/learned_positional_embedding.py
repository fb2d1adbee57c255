"""Learned positions.

Legend: B batch, T tokens, C channels, P longest input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.errors import DataError
from fairseq.registry import POSITIONS


@POSITIONS.register("learned")
class LearnedPositionalEmbedding(nn.Embedding):
    """A table of P + padding_idx + 1 rows; row ``padding_idx`` is zero and stays so, the rows before it are unused."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        with torch.no_grad():
            nn.init.normal_(self.weight, mean=0.0, std=embedding_dim**-0.5)
            self.weight[padding_idx].zero_()
        self.pad = padding_idx

    @property
    def max_positions(self) -> int:
        """P: the longest input the table reaches."""
        return self.num_embeddings - self.pad - 1

    def check(self, position_ids: Tensor, explicit: bool) -> None:
        """Raise DataError when an id lies outside the table.

        Ids counted from the tokens can only do so in inputs wider than P, so the transfer from the device that
        looking costs is paid there alone.
        """
        if torch.compiler.is_compiling() or position_ids.device.type == "meta" or not position_ids.numel():
            return
        if not explicit and position_ids.size(-1) <= self.max_positions:
            return
        low, high = int(position_ids.min()), int(position_ids.max())
        if low < 0 or high >= self.num_embeddings:
            wrong = f"position id {low}" if low < 0 else f"an input of {high - self.pad} tokens"
            raise DataError(
                f"{wrong} does not fit the model, which has learned positions for at most {self.max_positions} tokens; "
                "shorten the input, skip long samples, or use a model with more positions"
            )

    def forward(self, position_ids: Tensor) -> Tensor:  # (B, T) -> (B, T, C)
        return super().forward(position_ids)
