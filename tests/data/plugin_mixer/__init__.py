"""A plugin of one file: a token mixer and a channel mixer of its own, each with two options.

B batch, T tokens, C channels, F inner width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.dataclass import FairseqDataclass, option
from fairseq.registry import CHANNEL_MIXERS, TOKEN_MIXERS


@dataclass(kw_only=True)
class WindowConfig(FairseqDataclass):
    window_reach: int = option(2, "tokens to each side that are averaged")
    window_gated: bool = option(True, "multiply the average with a gate made from the token itself")


@TOKEN_MIXERS.register("window", dataclass=WindowConfig)
class Window(nn.Module):
    """A weighted average of the neighbours, the same weights for all channels; x (B, T, C) -> (B, T, C)."""

    def __init__(self, shape, *, reach: int, gated: bool) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.full((2 * reach + 1,), 1.0 / (2 * reach + 1)))
        self.gate = nn.Linear(shape.dim, shape.dim) if gated else None
        self.out_proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Tensor, context) -> Tensor:
        values = x if context.padding is None else x.masked_fill(context.padding.unsqueeze(-1), 0.0)
        windows = F.pad(values, (0, 0, self.reach, self.reach)).unfold(1, 2 * self.reach + 1, 1)  # (B, T, C, window)
        mixed = windows @ self.weight.to(x.dtype)
        if self.gate is not None:
            mixed = mixed * torch.sigmoid(self.gate(x))
        return self.out_proj(mixed)


@dataclass(kw_only=True)
class GatedConfig(FairseqDataclass):
    gated_width: int = option(24, "inner width")
    gated_power: int = option(2, "what the gate is raised to", choices=(1, 2))


@CHANNEL_MIXERS.register("gated", dataclass=GatedConfig)
class Gated(nn.Module):
    """down(relu(gate x)^power * up x), token by token; (B, T, C) -> (B, T, F) -> (B, T, C)."""

    def __init__(self, shape, *, width: int, power: int) -> None:
        super().__init__()
        self.power = power
        self.gate = nn.Linear(shape.dim, width)
        self.up = nn.Linear(shape.dim, width)
        self.down = nn.Linear(width, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * torch.relu(self.gate(x)) ** self.power)
