"""The encoder: embeddings, positions, a stack of layers, an optional last norm.

A layer is a token mixer and a channel mixer, each with a residual connection and a norm. `EncoderContext` is what the
layers of one forward pass share besides the hidden states.

Legend: B batch, T tokens, H heads, C channels, L layers, N real tokens, R of them that are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.modules.attention_bias import AttentionBias
from fairseq.modules.dropout import dropout, dropout_add, dropout_add_norm
from fairseq.modules.packing import Packing, declares, read_rows, scatter_rows
from fairseq.modules.positions import mask_out, position_ids_from_padding


@dataclass
class EncoderContext:
    """Made once per pass by the encoder and handed to every layer; grows fields instead of layers growing arguments.

    ``padding`` is (B, T), True = padding, or None when the batch holds none (attention is quicker without a mask).
    ``attention_bias`` is added to the attention scores of every sequence, or None. With ``packing`` the hidden states
    are (1, N, C), the real tokens of one sequence after the other, and there is no ``padding``; only layers whose token
    mixer has ``packs = True`` meet it. ``read`` is for the last layer only: the rows, of hidden states seen as (B T, C),
    that anything reads. The layer then gives those, (1, R, C).
    """

    padding: Tensor | None = None
    attention_bias: AttentionBias | None = None
    packing: Packing | None = None
    read: Tensor | None = None
    _dense_bias: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, padding: Tensor | None, attention_bias: AttentionBias | None = None) -> EncoderContext:
        """A context that keeps ``padding`` only if something in it is True.

        Looking costs one transfer from the device a pass; under ``torch.compile`` it would break the graph, so there
        the mask is kept as it is.
        """
        if padding is not None and not torch.compiler.is_compiling() and padding.device.type != "meta":
            padding = padding if bool(padding.any()) else None
        return cls(padding, attention_bias)

    def select(self, x: Tensor) -> Tensor:
        """The rows of ``x`` (B, T, C) that are read, (1, R, C); all of it, as it is, before the last layer."""
        return x if self.read is None else x.flatten(0, 1).index_select(0, self.read).unsqueeze(0)

    def key_mask(self) -> Tensor | None:
        """(B, 1, 1, T), True = may be attended to, as ``scaled_dot_product_attention`` wants it."""
        return None if self.padding is None else ~self.padding[:, None, None, :]

    def dense_bias(self, scores: Tensor) -> Tensor | None:
        """The bias (1 or H, T, T) for ``scores`` (B, H, T, T) or anything of their dtype, device and last size but one.

        It is made once a pass, for the longest sequence, and only if a layer asks: not every backend needs it.
        """
        if self.attention_bias is None:
            return None
        tokens = scores.size(-2)
        if self._dense_bias is None:
            longest = tokens if self.packing is None else max(self.packing.lengths)
            self._dense_bias = self.attention_bias.dense(longest, scores.device, scores.dtype)
        return self._dense_bias[:, :tokens, :tokens]


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
