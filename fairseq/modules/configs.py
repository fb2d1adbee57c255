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
        None,
        "factor on the products of queries and keys; default: one over the root of the width of a head",
        within="(0, inf)",
    )


@dataclass(kw_only=True)
class FastFeedForwardConfig(FairseqDataclass):
    """The size of fast feed-forward layers."""

    fff_depth: int = option(11, "depth of each tree: a token visits this many nodes and one more", within="[0, inf)")
    fff_trees: int = option(1, "trees side by side, whose outputs are added up", within="[1, inf)")


@dataclass(kw_only=True)
class ProductHeadConfig(FairseqDataclass):
    """The LM head that is nothing but a product."""

    product_bias: bool = option(False, "add a bias to the logits")


@dataclass(kw_only=True)
class LearnedPositionsConfig(FairseqDataclass):
    """How learned positions are counted."""

    learned_offset: int | None = option(None, _OFFSET, within="[0, inf)")
    learned_by_column: bool = option(False, _BY_COLUMN)


@dataclass(kw_only=True)
class SinusoidalPositionsConfig(FairseqDataclass):
    """How sinusoidal positions are counted."""

    sinusoidal_offset: int | None = option(None, _OFFSET, within="[0, inf)")
    sinusoidal_by_column: bool = option(False, _BY_COLUMN)


@dataclass(kw_only=True)
class BiGSConfig(FairseqDataclass):
    """Bidirectional gated state-space models. The gate is encoder-ffn-embed-dim wide; there are no heads."""

    bigs_num_ssm: int = option(64, "complex modes of a convolution", within="[1, inf)")
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
        "masked: results do not depend on padding; leak: padding is read like text, as in the original, for its models; "
        "full: the same, and inputs are always padded to max-positions, as its models were trained",
        choices=("masked", "leak", "full"),
    )
    bigs_method: str = option(
        "auto",
        "how convolutions are computed; auto: in chunks where that is quicker",
        choices=("auto", "fft", "chunks"),
    )
    bigs_ssm_lr_scale: float = option(
        1.0, "learning rate of the modes, steps and skips, relative to the others", within="(0, inf)"
    )
    bigs_ssm_weight_decay: bool = option(
        True, "decay the modes, steps and skips too, as the original does", action="boolean"
    )


_OVER = "; default: as the string says"


@dataclass(kw_only=True)
class ConvAttentionConfig(FairseqDataclass):
    """What attention with convolutions is made of: three strings, as the original spells them, and options that change one
    thing of a string."""

    conv_attention_kernel: str = option(
        "qk_convfixed_convq_convk 8",
        "words out of qk, convfixed, convq, convk, convolution or convolution_scaled, joined by _, and their reach; qk alone "
        "is plain attention; convbert",
    )
    conv_attention_content: bool | None = option(None, "scores have products of queries and keys" + _OVER)
    conv_attention_fixed: bool | None = option(
        None, "scores have a table over relative positions for each head" + _OVER
    )
    conv_attention_query: bool | None = option(None, "scores have relative embeddings for queries" + _OVER)
    conv_attention_key: bool | None = option(None, "scores have relative embeddings for keys" + _OVER)
    conv_attention_depthwise: str | None = option(
        None,
        "a depthwise convolution of the values beside attention; scaled: times a trained number for each head" + _OVER,
        choices=("none", "plain", "scaled"),
    )
    conv_attention_convbert: str | None = option(
        None,
        "dynamic convolutions in half of the heads, made by the key, as in the original, or by the query, as in ConvBERT"
        + _OVER,
        choices=("none", "key", "query"),
    )
    conv_attention_reach: int | None = option(
        None, "tokens to each side that the kernel tells apart" + _OVER, within="[1, inf)"
    )
    conv_attention_value_projection: str = option(
        "linear", "linear, or convolution[_depth][_mixed][_no_act] REACH GROUPS (depth: without GROUPS)"
    )
    conv_attention_value_mixed: bool | None = option(None, "half of the heads have linear values" + _OVER)
    conv_attention_value_activation: bool | None = option(None, "activation after the depthwise convolution" + _OVER)
    conv_attention_value_reach: int | None = option(
        None, "tokens to each side of the convolution" + _OVER, within="[1, inf)"
    )
    conv_attention_value_groups: int | None = option(None, "groups of the convolution" + _OVER, within="[1, inf)")
    conv_attention_query_key_projection: str = option("linear", "as for values, or none")
    conv_attention_query_key_mixed: bool | None = option(None, "half of the heads have linear queries and keys" + _OVER)
    conv_attention_query_key_activation: bool | None = option(
        None, "activation after the depthwise convolution" + _OVER
    )
    conv_attention_query_key_reach: int | None = option(
        None, "tokens to each side of the convolution" + _OVER, within="[1, inf)"
    )
    conv_attention_query_key_groups: int | None = option(None, "groups of the convolution" + _OVER, within="[1, inf)")
    conv_attention_head_dim: int | None = option(
        None, "width of a head; default: that of the encoder divided by the number of heads", within="[1, inf)"
    )
