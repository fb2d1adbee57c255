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


@dataclass(kw_only=True)
class BiGSConfig(FairseqDataclass):
    """Bidirectional gated state-space models. The gate is encoder-ffn-embed-dim wide; there are no heads."""

    bigs_num_ssm: int = option(64, "complex modes of a convolution")
    bigs_spectrum: str = option(
        "hippo",
        "how the frequencies of the modes begin: those of HiPPO, linear or inverse",
        choices=("hippo", "lin", "inv"),
    )
    bigs_activation: str = option(
        "gelu_accurate",
        "activation within the block; gelu_accurate (tanh) is that of the published models",
        choices=("gelu", "gelu_accurate"),
    )
    bigs_padding: str = option(
        "masked",
        "masked: results do not depend on padding; leak: padding is read like text, as in the original, for its models",
        choices=("masked", "leak"),
    )
    bigs_method: str = option(
        "auto",
        "how convolutions are computed; auto: in chunks where that is quicker",
        choices=("auto", "fft", "chunks"),
    )
    bigs_ssm_lr_scale: float = option(1.0, "learning rate of the modes, steps and skips, relative to the others")
    bigs_ssm_weight_decay: bool = option(
        True, "decay the modes, steps and skips too, as the original does", action="boolean"
    )
