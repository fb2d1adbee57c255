"""One encoder layer: a token mixer and a channel mixer, each with a residual connection and a norm.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn

from fairseq.modules.context import EncoderContext
from fairseq.modules.declared import declares
from fairseq.modules.dropout import dropout_add, dropout_add_norm

L = TypeVar("L", bound=nn.Module)


class EncoderLayer(nn.Module):
    """x + mix(x), twice, normalised after each sum (post-norm) or before each mixer (pre-norm).

    ``token_mixer(x, context)`` and ``channel_mixer(x)`` map (B, T, C) to (B, T, C). Of a last layer's hidden states
    sometimes only some are read (`EncoderContext.read`); what follows the mixing is then done for these.

    Checkpoints name the parts of the standard feed-forward block ``fc1`` and ``fc2`` of the layer itself: the children of
    a channel mixer with ``hoisted = True`` are registered here under their own names and the mixer only refers to them;
    any other mixer is the child ``channel_mixer``.
    """

    def __init__(
        self, dim: int, token_mixer: nn.Module, channel_mixer: nn.Module, *, pre_norm: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.dropout = dropout
        self.self_attn = token_mixer
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        if getattr(channel_mixer, "hoisted", False):
            object.__setattr__(self, "channel_mixer", channel_mixer)
            for name, child in channel_mixer.named_children():
                self.add_module(name, child)
        else:
            self.channel_mixer = channel_mixer
        self.final_layer_norm = nn.LayerNorm(dim)

    def train(self: L, mode: bool = True) -> L:
        """As usual, reaching a hoisted channel mixer too."""
        self.__dict__.get("channel_mixer", self).training = mode
        return super().train(mode)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        p, training = self.dropout, self.training
        # A mixer that does not say so has never heard of rows that are not read, nor may what it calls hear of them.
        selects = context.read is None or declares(self.self_attn, "selects", "forward")
        mixed = self.self_attn(
            self.self_attn_layer_norm(x) if self.pre_norm else x, context if selects else replace(context, read=None)
        )
        x, mixed = context.select(x), mixed if selects else context.select(mixed)
        if self.pre_norm:
            x = dropout_add(mixed, x, p, training)
            return dropout_add(self.channel_mixer(self.final_layer_norm(x)), x, p, training)
        x = dropout_add_norm(mixed, x, self.self_attn_layer_norm, p, training)
        return dropout_add_norm(self.channel_mixer(x), x, self.final_layer_norm, p, training)
