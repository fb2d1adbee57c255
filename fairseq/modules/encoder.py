"""The encoder: embeddings, positions, a stack of layers, an optional last norm.

A layer is a token mixer and a channel mixer, each with a residual connection and a norm. What fills these slots is
described in ``fairseq.modules.slots``.

Legend: B batch, T tokens, C channels, L layers, N non-padding tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fairseq.errors import DataError
from fairseq.layout import Layout
from fairseq.modules.dropout import dropout, dropout_add, dropout_add_norm
from fairseq.modules.packing import Rows
from fairseq.modules.positions import given_ids, mask_out, token_types
from fairseq.modules.slots import EncoderContext
from fairseq.overrides import supports

L = TypeVar("L", bound=nn.Module)


class EncoderLayer(nn.Module):
    """x + mix(x), once per mixer, normalized after each sum (post-norm) or before each mixer (pre-norm).

    ``token_mixer(x, context)`` and ``channel_mixer(x)`` map (B, T, C) to (B, T, C); without a channel mixer (None)
    there is no norm for it either. Of a last layer's hidden states sometimes only some are read (`EncoderContext.keep`); what
    follows the token mixer is then done for these.

    Names are those of checkpoints. The children of a channel mixer with ``register_children_in_parent`` are registered
    here under their own names and the mixer only refers to them; any other mixer is the child ``channel_mixer``.
    """

    packs = True
    selects = True
    channel_mixer: Any
    final_layer_norm: Any

    def __init__(
        self,
        token_mixer: nn.Module,
        channel_mixer: nn.Module | None,
        token_norm: nn.Module,
        channel_norm: nn.Module | None,
        *,
        pre_norm: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.dropout = dropout
        self.self_attn = token_mixer
        self.self_attn_layer_norm = token_norm
        if channel_mixer is not None and getattr(channel_mixer, "register_children_in_parent", False):
            object.__setattr__(self, "channel_mixer", channel_mixer)
            for name, child in channel_mixer.named_children():
                self.add_module(name, child)
        else:
            self.register_module("channel_mixer", channel_mixer)
        self.register_module("final_layer_norm", None if channel_mixer is None else channel_norm)

    def train(self: L, mode: bool = True) -> L:
        """As usual, reaching a channel mixer that is not a child too."""
        self.__dict__.get("channel_mixer", self).training = mode
        return super().train(mode)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        p, training = self.dropout, self.training
        # A mixer that does not say so has never heard of rows that are not read, nor may what it calls hear of them.
        selects = context.kept is None or supports(self.self_attn, "selects", "forward")
        mixed = self.self_attn(
            self.self_attn_layer_norm(x) if self.pre_norm else x, context if selects else replace(context, kept=None)
        )
        x, mixed = context.keep(x), mixed if selects else context.keep(mixed)
        if self.pre_norm:
            x = dropout_add(mixed, x, p, training)
        else:
            x = dropout_add_norm(mixed, x, self.self_attn_layer_norm, p, training)
        if self.channel_mixer is None:
            return x
        if self.pre_norm:
            return dropout_add(self.channel_mixer(self.final_layer_norm(x)), x, p, training)
        return dropout_add_norm(self.channel_mixer(x), x, self.final_layer_norm, p, training)


class EncoderOutput(NamedTuple):
    """``features`` (B, T, C); ``inner_states`` L + 1 tensors (T, B, C), embeddings first, or None if not asked for."""

    features: Tensor
    inner_states: list[Tensor] | None


@dataclass(frozen=True)
class EncoderOptions:
    """The numbers of an ``Encoder``.

    ``layerdrop`` is the probability of leaving out a layer in a training pass; ``activation_checkpointing`` trades time
    for memory by running each layer again in the backward pass; ``offload`` also keeps the inputs of the layers on the
    CPU; ``zero_padding`` is whether the layers see zero vectors at padding.
    """

    embed_scale: float = 1.0
    dropout: float = 0.0
    layerdrop: float = 0.0
    activation_checkpointing: bool = False
    offload: bool = False
    zero_padding: bool = True


class Encoder(nn.Module):
    """Token vectors in, contextual features out.

    Children and their order are those of the original's state dict: version, embed_tokens, embed_positions,
    embed_token_types, layernorm_embedding, layers, layer_norm. ``embed_positions`` is a ``PositionEmbedding`` or None.
    Embeddings of another width than the layers' go through ``embed_projection``, last of all.
    """

    version: Tensor
    selects = True
    takes_layout = True
    pack_below: float = 0.9
    """Fraction of non-padding tokens up to which a batch is packed, when it may be; 0 never packs."""
    layer_draws: torch.Generator | None = None
    """What draws the layers that are left out, where all processes have to leave out the same; None: torch's own."""
    read_below: float = 0.75
    """Fraction of hidden states below which the last layer computes only those that are read; 0 always computes all."""

    def __init__(
        self,
        embed_tokens: nn.Module,
        embed_positions: Any,
        layernorm_embedding: nn.Module | None,
        layers: Sequence[nn.Module],
        layer_norm: nn.Module | None,
        options: EncoderOptions,
        embed_token_types: nn.Embedding | None = None,
        embed_projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor([3.0]))
        self.options = options
        self.embed_tokens = embed_tokens
        self.embed_positions = embed_positions
        self.embed_token_types = embed_token_types
        self.layernorm_embedding = layernorm_embedding
        self.embed_projection = embed_projection
        self.layers = nn.ModuleList(layers)
        self.layer_norm = layer_norm

    @property
    def emb_layer_norm(self) -> nn.Module | None:
        """Old name of ``layernorm_embedding``, which converters read."""
        return self.layernorm_embedding

    @property
    def segment_embeddings(self) -> nn.Embedding | None:
        """Old name of ``embed_token_types``."""
        return self.embed_token_types

    @property
    def embedding_dim(self) -> int:
        """C, the width of the layers."""
        embeddings: Any = self.embed_tokens if self.embed_projection is None else self.embed_projection
        return int(getattr(embeddings, "out_features", None) or embeddings.embedding_dim)

    def embed(
        self,
        tokens: Tensor,
        padding: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        rows: Rows | None = None,
        type_limits: tuple[int, int] | None = None,
    ) -> Tensor:
        """Token vectors (B, T, C), as ``rows`` has them, plus types and positions, normalized and dropped out."""
        rows = Rows.plan(padding) if rows is None else rows
        scale = self.options.embed_scale
        x = rows.enter(tokens)
        x = x if scale == 1.0 else x * scale
        if self.embed_token_types is not None:
            types = token_types(token_type_ids, padding, self.embed_token_types.num_embeddings, type_limits)
            x = x + self.embed_token_types(rows.enter(types))
        elif token_type_ids is not None:
            raise DataError(
                "token_type_ids are given, but the model has no token types: set model.type_vocab_size or leave them out"
            )
        if self.embed_positions is not None:
            positions = self.embed_positions
            ids = positions.ids(padding) if position_ids is None else given_ids("position_ids", position_ids, padding)
            positions.check(ids, position_ids is not None)
            x = x + positions(rows.enter(ids))
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = dropout(x, self.options.dropout, self.training)
        return x if self.embed_projection is None else self.embed_projection(x)

    def forward(
        self,
        tokens: Tensor,
        padding: Tensor,
        position_ids: Tensor | None = None,
        return_all_hiddens: bool = False,
        read: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        layout: Layout | None = None,
    ) -> EncoderOutput:
        """``tokens`` (B, T, C) vectors, ``padding`` (B, T) with True = padding, ``position_ids`` (B, T) table rows.

        ``token_type_ids`` (B, T) are zero if not given. ``read`` (B, T) says where features will be read; elsewhere
        they are not computed where that saves time, and zero. None: everywhere, also at padding, where they are what the
        layers make of zero vectors, as in the original. ``layout``: what the host knows of the batch; ``read`` may then be
        its places of predicted tokens.
        """
        read = None if return_all_hiddens else read
        if layout is None:
            rows = Rows.plan(padding, read, self.pack_below if all(map(packs, self.layers)) else 0.0)
            x = self.embed(tokens, padding, position_ids, token_type_ids, rows)
            context = EncoderContext(rows.padding, rows.lengths)
        else:
            packs_all = layout.packed is not None and self._packs_unasked(tokens)
            rows = Rows.known(padding, read, layout, self.pack_below if packs_all else 0.0)
            x = self.embed(tokens, padding, position_ids, token_type_ids, rows, layout.types)
            context = known_context(rows, layout)
        if context.padding is not None and self.options.zero_padding and not any(map(reads_padding, self.layers)):
            x = mask_out(x, context.padding)
        states = [x.transpose(0, 1)] if return_all_hiddens else None
        layers = self._drawn_layers()
        for number, layer in enumerate(layers, start=1):
            if rows.read is not None and number == len(layers) and selects(layer):
                rows = rows.narrow(self.read_below)
                context = replace(context, kept=rows.kept)
            x = self._run(layer, x, context)
            if states is not None:
                states.append(x.transpose(0, 1))
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return EncoderOutput(rows.exit(x), states)

    def _packs_unasked(self, tokens: Tensor) -> bool:
        """Whether all layers take packed ``tokens`` (B, T, C) without asking a device where sequences begin."""
        mixers = (getattr(layer, "self_attn", layer) for layer in self.layers)
        return all(map(packs, self.layers)) and (
            tokens.device.type == "cpu" or all(_finds_starts(mixer, tokens) for mixer in mixers)
        )

    def _drawn_layers(self) -> list[nn.Module]:
        """The layers of this pass: in training each stays if its own uniform number exceeds ``layerdrop``."""
        layers = list(self.layers)
        if not self.training or self.options.layerdrop <= 0:
            return layers
        draws = torch.empty(len(layers)).uniform_(
            generator=self.layer_draws
        )  # on the CPU, so that all devices leave out the same layers
        return [layer for layer, draw in zip(layers, draws.tolist(), strict=True) if draw > self.options.layerdrop]

    def _run(self, layer: nn.Module, x: Tensor, context: EncoderContext) -> Tensor:
        if not (self.options.activation_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(x, context)
        store = torch.autograd.graph.save_on_cpu() if self.options.offload else contextlib.nullcontext()
        with store:
            return checkpoint(layer, x, context, use_reentrant=False)


def known_context(rows: Rows, layout: Layout) -> EncoderContext:
    """What layers are told of a batch whose ``layout`` is known."""
    return EncoderContext(
        rows.padding,
        rows.lengths,
        token_counts=None if rows.padding is None else layout.token_counts,
        starts=None if rows.lengths is None else layout.starts,
    )


def packs(layer: nn.Module) -> bool:
    """Whether ``layer`` may be given the non-padding tokens of a batch as (1, N, C)."""
    parts = (layer, getattr(layer, "self_attn", layer))
    able = all(supports(part, "packs", "forward") for part in parts) and _works_by_rows(layer)
    return able and not reads_padding(layer)


def reads_padding(layer: nn.Module) -> bool:
    """Whether features of other tokens depend on the hidden states at padding, which must then be as without a mask."""
    return getattr(getattr(layer, "self_attn", layer), "reads_padding", False)


def padded_length(encoder: nn.Module) -> int:
    """Tokens up to which ``encoder`` wants its inputs padded, where they are shorter; 0: not at all."""
    layers: Any = getattr(encoder, "layers", ())
    return max((getattr(getattr(layer, "self_attn", layer), "padded_length", 0) for layer in layers), default=0)


def _finds_starts(mixer: nn.Module, x: Tensor) -> bool:
    """Whether ``mixer`` finds packed sequences of tokens like ``x`` by `EncoderContext.starts`."""
    return supports(mixer, "finds_starts", "forward") and mixer.finds_starts(x)  # type: ignore[operator]


def selects(layer: nn.Module) -> bool:
    """Whether ``layer`` may be asked for the rows that are read alone."""
    return supports(layer, "selects", "forward") and _works_by_rows(layer)


def _works_by_rows(layer: nn.Module) -> bool:
    return getattr(getattr(layer, "channel_mixer", None), "row_wise", True)
