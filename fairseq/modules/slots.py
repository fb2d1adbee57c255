"""The slots of an encoder: the numbers that variants are built from, and what a variant of each slot has to offer.

A variant is registered (``fairseq.registry``) as a callable ``variant(shape, **options)``: its class, or a small
builder beside the class. The classes themselves take numbers and built children. Modules that need other first values than
``fairseq.modules.initialization`` draws define ``draw_weights()``.

Legend: B batch, T tokens, C channels, H heads, D head width, N non-padding tokens, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fairseq.modules.packing import take


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The numbers that every variant may read."""

    dim: int
    heads: int
    ffn_dim: int
    layers: int
    max_positions: int
    padding_idx: int
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    attention_backend: str = "auto"
    norm_eps: float = 1e-5
    bias: bool = True
    """Linear maps have biases."""
    embedding_dim: int | None = None
    """Width of the embeddings of tokens, where it is not that of the encoder."""

    def norm(self) -> nn.LayerNorm:
        """A new layer norm over the channels."""
        return nn.LayerNorm(self.dim, eps=self.norm_eps)


@dataclass(frozen=True)
class EncoderContext:
    """What the layers of one pass share beside the hidden states.

    ``padding`` is (B, T), True = padding, or None where there is none to leave out. With ``lengths`` the hidden states
    are (1, N, C), the non-padding tokens of one sequence after the other; only mixers with ``packs`` are given those.
    ``cache`` lives as long as the pass: what is the same for several layers is kept there, under a key of its owner's.

    On a device, where the host knows them (`fairseq.layout`): ``token_counts`` (B,) int32, the tokens of every sequence,
    beside ``padding`` that all comes at the end; ``starts`` (B + 1,) int32, where packed sequences begin and end.
    """

    padding: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    kept: Tensor | None = None
    token_counts: Tensor | None = None
    starts: Tensor | None = None
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def keep(self, x: Tensor) -> Tensor:
        """Those rows of ``x`` (B, T, C) that anything reads, (1, R, C), in the last layer; else ``x`` as it is."""
        return x if self.kept is None else take(x, self.kept)


class TokenMixer(Protocol):
    """Looks from token to token: x (B, T, C) -> (B, T, C). ``variant(shape, attention_bias=None, **options)``."""

    packs: bool
    """It also takes the non-padding tokens of a batch as (1, N, C), and finds their sequences in `context.lengths`."""
    selects: bool
    """In the last layer it computes no more than is read: it passes what it mixed through `context.keep`. Otherwise the
    layer cuts what it gives."""

    reads_padding: bool
    """It takes padding for text (False by default): embeddings there are not made zero, and nothing is packed."""

    padded_length: int
    """Tokens up to which shorter inputs are padded before anything else (0, the default: not at all)."""

    finds_starts: Any
    """A method (x) -> bool, said of `forward`: whether it finds packed sequences by `context.starts`, so that tokens like x
    (B, T, C) may be packed on a device."""

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor: ...


class ChannelMixer(Protocol):
    """Works within each token: x (B, T, C) -> (B, T, C). ``variant(shape, **options)``; None leaves it out."""

    row_wise: bool
    """Every token alone (the default): it may then be given any rows. False where it looks at neighbors too."""
    register_children_in_parent: bool
    """Its children are parameters of the layer itself, under their own names (``fc1``, ``fc2``), not of a child."""

    def forward(self, x: Tensor) -> Tensor: ...


class PositionEmbedding(Protocol):
    """Vectors of positions, added to those of tokens. ``variant(shape, offset=None, by_column=False, **options)``."""

    def ids(self, padding: Tensor) -> Tensor:
        """The ids (B, T) of the tokens of a batch with ``padding`` (B, T), True = padding."""
        ...

    def check(self, position_ids: Tensor, explicit: bool) -> None:
        """Raise DataError for ids without a vector; ``explicit`` ones do not come from `ids`."""
        ...

    def forward(self, position_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)"""
        ...


class AttentionBias(Protocol):
    """Added to the scores of one mixer before the softmax. ``variant(shape, **options)``; None for no bias.

    A bias without parameters is a value: frozen, equal to its like, hashable. Its table is then made once per pass for
    all layers that have an equal one. A bias with parameters is a module, and a child of its mixer.
    """

    def dense(self, tokens: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """(1 or H, T, T) for any number of ``tokens``, a corner of that for more; never as large as the batch."""
        ...


@runtime_checkable
class ContentBias(Protocol):
    """An attention bias that depends on queries and keys, too."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(1 or B, 1 or H, T, T) for ``q`` and ``k`` (B, H, T, D), which are not scaled yet."""
        ...


class TaskHead(Protocol):
    """Features (B, T, C) to whatever a task wants."""

    skips_padding: bool
    """Where `reads` is not None, it is False at padding, if that all comes at the end and no sequence is empty."""

    def reads(self, padding: Tensor) -> Tensor | None:
        """Where `forward` reads features, (B, T) for ``padding`` (B, T); None (the default): everywhere."""
        ...

    def forward(self, features: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """``padding_mask`` (B, T), True = padding; heads without this argument are given features alone."""
        ...


class LMHead(Protocol):
    """Features to logits. ``variant(shape, vocab, embeddings, **options)``; ``embeddings`` are (V, C), or None for weights
    of its own."""

    takes_targets: bool
    """With ``targets`` (M,) the result is the summed loss; and only features of ``masked_tokens`` are read."""
    takes_places: bool
    """``masked_tokens`` may also be int64 (M,), places in the flattened batch; targets of -100 then count nothing."""

    def forward(self, features: Tensor, masked_tokens: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, V), or (M, V) of ``masked_tokens`` (B, T)."""
        ...
