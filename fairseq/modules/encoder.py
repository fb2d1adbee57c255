"""The encoder: embeddings, positions, a stack of layers, an optional last norm.

Legend: B batch, T tokens, C channels, H heads, L layers, N real tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.modules.attention_bias import AttentionBias
from fairseq.modules.context import EncoderContext
from fairseq.modules.declared import declares
from fairseq.modules.dropout import dropout
from fairseq.modules.embeddings import mask_out, position_ids_from_padding
from fairseq.modules.encoder_layer import EncoderLayer
from fairseq.modules.packing import Packing, read_rows, scatter_rows


class EncoderOutput(NamedTuple):
    """``features`` (B, T, C); ``inner_states`` L + 1 tensors (T, B, C), embeddings first, or None if not asked for."""

    features: Tensor
    inner_states: list[Tensor] | None


@dataclass(frozen=True)
class EncoderOptions:
    """The numbers of an ``Encoder``.

    ``layerdrop`` is the probability of leaving out a layer in a training pass; ``recompute`` trades time for memory by
    running each layer again in the backward pass; ``offload`` also keeps the inputs of the layers on the CPU.
    """

    padding_idx: int
    embed_scale: float = 1.0
    dropout: float = 0.0
    layerdrop: float = 0.0
    recompute: bool = False
    offload: bool = False


class Encoder(nn.Module):
    """Token vectors in, contextual features out.

    Children and their order are those of the original's state dict: version, embed_tokens, embed_positions,
    layernorm_embedding, layers, layer_norm. ``attention_bias`` is that of all layers.
    """

    version: Tensor
    pack_below: float = 0.9
    """Share of real tokens up to which a batch is packed, when it may be; 0 never packs."""
    read_below: float = 0.75
    """Share of hidden states below which the last layer computes only those that are read; 0 always computes all."""

    def __init__(
        self,
        embed_tokens: nn.Module,
        embed_positions: Any,
        layernorm_embedding: nn.Module | None,
        layers: Sequence[nn.Module],
        layer_norm: nn.Module | None,
        options: EncoderOptions,
        attention_bias: AttentionBias | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor([3.0]))
        self.options = options
        self.embed_tokens = embed_tokens
        self.embed_positions = embed_positions
        self.layernorm_embedding = layernorm_embedding
        self.layers = nn.ModuleList(layers)
        self.layer_norm = layer_norm
        self.attention_bias = attention_bias

    def embed(
        self, tokens: Tensor, padding: Tensor, position_ids: Tensor | None, packing: Packing | None = None
    ) -> Tensor:
        """Token vectors (B, T, C), packed if asked to, plus positions, normalised and dropped out."""
        scale = self.options.embed_scale
        x = tokens if packing is None else packing.pack(tokens)
        x = x if scale == 1.0 else x * scale
        if self.embed_positions is not None:
            explicit = position_ids is not None
            ids = (
                position_ids
                if position_ids is not None
                else position_ids_from_padding(padding, self.options.padding_idx)
            )
            self.embed_positions.check(ids, explicit)
            x = x + self.embed_positions(ids if packing is None else packing.pack(ids))
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return dropout(x, self.options.dropout, self.training)

    def forward(
        self,
        tokens: Tensor,
        padding: Tensor,
        position_ids: Tensor | None = None,
        return_all_hiddens: bool = False,
        read: Tensor | None = None,
    ) -> EncoderOutput:
        """``tokens`` (B, T, C) vectors, ``padding`` (B, T) with True = padding, ``position_ids`` (B, T) table rows.

        ``read`` (B, T) says where features will be read; elsewhere they are not computed where that saves time, and
        zero. None: everywhere, also at padding, where they are what the layers make of zero vectors, as in the original.
        """
        read = None if return_all_hiddens or read is None else read.expand(padding.shape)
        packing = self._packing(padding, read)
        x = self.embed(tokens, padding, position_ids, packing)
        if packing is not None:
            context = EncoderContext(None, self.attention_bias, packing)
        else:
            context = EncoderContext.of(padding, self.attention_bias)
        if context.padding is not None:
            x = mask_out(x, context.padding)
        states = [x.transpose(0, 1)] if return_all_hiddens else None
        layers = self._drawn_layers()
        for number, layer in enumerate(layers, start=1):
            if read is not None and number == len(layers):
                context = replace(context, read=self._rows(layer, read, packing))
            x = self._run(layer, x, context)
            if states is not None:
                states.append(x.transpose(0, 1))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if context.read is not None:
            x = scatter_rows(x, context.read if packing is None else packing.rows[context.read], padding.shape)
        elif packing is not None:
            x = packing.unpack(x)
        return EncoderOutput(x, states)

    def _packing(self, padding: Tensor, read: Tensor | None) -> Packing | None:
        """How to leave out padding; None where something reads it, or a layer has to see it."""
        if read is None:
            return None
        packing = Packing.of(padding, self.pack_below)
        if packing is None or not all(takes_rows(layer) for layer in self.layers):
            return None
        return None if bool((read & padding).any()) else packing

    def _rows(self, layer: nn.Module, read: Tensor | None, packing: Packing | None) -> Tensor | None:
        """The rows that ``layer``, the last one, need compute; None for all of them."""
        if read is None or type(layer).forward is not EncoderLayer.forward or not row_wise(layer):
            return None
        return read_rows(read if packing is None else packing.pack(read), self.read_below)

    def _drawn_layers(self) -> list[nn.Module]:
        """The layers of this pass: in training each stays if its own uniform number exceeds ``layerdrop``."""
        layers = list(self.layers)
        if not self.training or self.options.layerdrop <= 0:
            return layers
        draws = torch.empty(len(layers)).uniform_()  # on the CPU, so that all devices leave out the same layers
        return [layer for layer, draw in zip(layers, draws.tolist(), strict=True) if draw > self.options.layerdrop]

    def _run(self, layer: nn.Module, x: Tensor, context: EncoderContext) -> Tensor:
        if not (self.options.recompute and self.training and torch.is_grad_enabled()):
            return layer(x, context)
        store = torch.autograd.graph.save_on_cpu() if self.options.offload else contextlib.nullcontext()
        with store:
            return checkpoint(layer, x, context, use_reentrant=False)


def takes_rows(layer: nn.Module) -> bool:
    """Whether ``layer`` may be given the real tokens of a batch as (1, N, C).

    Its token mixer has to say so by ``packs = True``. A channel mixer that is not row by row says ``row_wise = False``.
    """
    if type(layer).forward is not EncoderLayer.forward:
        return False
    return declares(layer.self_attn, "packs", "forward") and row_wise(layer)


def row_wise(layer: nn.Module) -> bool:
    """Whether the channel mixer of ``layer`` works row by row."""
    return getattr(layer.channel_mixer, "row_wise", True)
