"""Options of the encoder's variants that are not old keys of the model; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import FairseqDataclass, option

_OFFSET = "row of the table that the first position has; default: padding index + 1, which leaves unused rows before it"
_BY_COLUMN = "count positions by column, padding included, instead of along the tokens"


@dataclass(kw_only=True)
class SelfAttentionConfig(FairseqDataclass):
    """How attention scores are scaled."""

    self_attention_scale: float | None = option(
        None, "factor on the products of queries and keys; default: one over the root of the width of a head"
    )


@dataclass(kw_only=True)
class FastFeedForwardConfig(FairseqDataclass):
    """The size of fast feed-forward layers."""

    fff_depth: int = option(11, "depth of each tree: a token visits this many nodes and one more")
    fff_trees: int = option(1, "trees side by side, whose outputs are added up")


@dataclass(kw_only=True)
class ProductHeadConfig(FairseqDataclass):
    """The LM head that is nothing but a product."""

    product_bias: bool = option(False, "add a bias to the logits")


@dataclass(kw_only=True)
class LearnedPositionsConfig(FairseqDataclass):
    """How learned positions are counted."""

    learned_offset: int | None = option(None, _OFFSET)
    learned_by_column: bool = option(False, _BY_COLUMN)


@dataclass(kw_only=True)
class SinusoidalPositionsConfig(FairseqDataclass):
    """How sinusoidal positions are counted."""

    sinusoidal_offset: int | None = option(None, _OFFSET)
    sinusoidal_by_column: bool = option(False, _BY_COLUMN)
