"""The configuration of every RoBERTa model: one flat dataclass, because old YAML files, flags and checkpoints are flat.

Nothing here imports torch, so that ``--help`` stays quick. ``fairseq.models.roberta.factory`` turns these values into
parts, ``fairseq.models.roberta.presets`` holds the named architectures as differences from the defaults below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fairseq.dataclass.base import FairseqDataclass, carried, option
from fairseq.dataclass.legacy import OUT_OF_SCOPE
from fairseq.dataclass.slots import Variant
from fairseq.errors import ConfigError
from fairseq.registry import ATTENTION_BIASES, CHANNEL_MIXERS, LM_HEADS, POSITIONS, TOKEN_MIXERS

_OLD = OUT_OF_SCOPE["model"]
ATTENTION_BACKENDS = ("auto", "eager", "sdpa", "flex", "fused", "triton")
EXTENSIONS = ("tile", "interpolate")
POOLINGS = ("first", "mean", "masked_mean")
ACTIVATIONS = ("relu", "gelu", "gelu_fast", "gelu_accurate", "relu_squared", "silu", "swish", "tanh", "linear")


@dataclass(kw_only=True)
class RobertaConfig(FairseqDataclass):
    """Sizes, regularization and variants of the encoder and its heads.

    A probability is a float in [0, 1]. The defaults are those of ``roberta_base``. Fields that are only ``carried``
    by old files accept their default value alone.
    """

    # Sizes
    encoder_layers: int = option(12, "number of encoder layers", within="[0, inf)")
    encoder_embed_dim: int = option(768, "width of the encoder (channels)", within="[1, inf)")
    encoder_ffn_embed_dim: int = option(3072, "inner width of the feed-forward blocks", within="[1, inf)")
    encoder_attention_heads: int = option(12, "number of attention heads; divides the encoder width", within="[1, inf)")
    max_positions: int | None = option(
        None,
        "longest input in tokens, special symbols included; default: the task's limit, else 512",
        within="[1, inf)",
    )
    max_source_positions: int | None = option(
        None, "always overwritten with max_positions; kept because old files carry it", within="[1, inf)"
    )

    extend_positions: str | None = option(
        None,
        "learned positions of a checkpoint for shorter inputs than max_positions: repeated (tile) or drawn out (interpolate); "
        "default: an error",
        choices=EXTENSIONS,
        new=True,
    )

    # Activations, norms and regularization
    activation_fn: str = option("gelu", "activation of the feed-forward blocks and of the LM head", choices=ACTIVATIONS)
    pooler_activation_fn: str = option("tanh", "activation of the classification heads", choices=ACTIVATIONS)
    encoder_normalize_before: bool = option(False, "normalize the input of each block (pre-norm), not its output")
    layernorm_embedding: bool = option(True, "layer norm over the embeddings")
    final_norm: bool = option(True, "pre-norm: normalize the output of the last layer", new=True)
    dropout: float = option(0.1, "dropout after embeddings, attention and feed-forward", within="[0, 1)")
    residual_dropout: float | None = option(
        None,
        "dropout after attention and feed-forward, where it is not that of the embeddings",
        within="[0, 1)",
        new=True,
    )
    attention_dropout: float = option(0.1, "dropout of the attention weights", within="[0, 1)")
    activation_dropout: float = option(0.0, "dropout after the activation of the feed-forward blocks", within="[0, 1)")
    relu_dropout: float = option(0.0, "old name of activation_dropout, used when that is 0", within="[0, 1)")
    pooler_dropout: float = option(0.0, "dropout in the classification heads", within="[0, 1)")
    pooler_input_dropout: bool = option(
        True, "dropout before the inner layer of the classification heads, too", new=True
    )
    pooler_inner_dim: int | None = option(
        None, "inner width of the classification heads; default: that of the encoder", within="[1, inf)", new=True
    )
    encoder_layerdrop: float = option(0.0, "probability of leaving out a layer in a training pass", within="[0, 1]")
    encoder_layers_to_keep: str | None = option(
        None, "comma-separated layers to keep when loading a deeper checkpoint, as in 0,2,4"
    )

    # Embeddings and positions
    encoder_learned_pos: bool = option(True, "learned positions; otherwise sinusoidal ones")
    no_token_positional_embeddings: bool = option(False, "no position embedding")
    no_scale_embedding: bool = option(True, "do not multiply the token embeddings by the root of the encoder width")
    adaptive_input: bool = carried(*_OLD["adaptive_input"])

    # Slots: each names a registered variant, whose own options then join this section. The settings that follow are the
    # older spelling of the variants that the original has, which is what files of these keep.
    token_mixer: str | None = option(None, "how tokens see each other [self_attention]", slot=TOKEN_MIXERS)
    channel_mixer: str | None = option(None, "what is done token by token [feed_forward]", slot=CHANNEL_MIXERS)
    positions: str | None = option(None, "position embedding [learned]", slot=POSITIONS)
    attention_bias: str | None = option(None, "what is added to attention scores [none]", slot=ATTENTION_BIASES)
    lm_head: str | None = option(None, "masked-LM head [roberta]", slot=LM_HEADS)
    layer_norm_eps: float = option(1e-5, "epsilon of the layer norms", within="(0, 1)", new=True)
    zero_padding: bool = option(
        True, "embeddings of padding become zero vectors; matters only to what reads features of padding", new=True
    )
    decay_biases_and_norms: bool = option(True, "weight decay on biases and layer norms, too", new=True)
    linear_bias: bool = option(True, "biases in the linear maps of the layers", new=True)
    embedding_size: int | None = option(
        None,
        "width of the embeddings, which a linear map brings to that of the encoder; default: the same",
        within="[1, inf)",
        new=True,
    )
    type_vocab_size: int = option(
        0, "number of token types (segments) with an embedding; 0: none", within="[0, inf)", new=True
    )

    # Variants: ALiBi, contrastive (CLAP) head, zero masking
    encoder_alibi: bool = option(False, "attention with linear biases (ALiBi); needs no_token_positional_embeddings")
    encoder_alibi_asymmetrical: bool = option(False, "ALiBi that tells what is ahead from what is behind")
    contrastive_pretraining: bool = option(False, "CLAP head: scaled products with the token embeddings as logits")
    initial_beta: float = option(1.0, "initial inverse temperature of the CLAP head", within="(0, inf)")
    l2norm_embedding: bool = option(
        True,
        "giving this flag, under either name, turns OFF the L2 normalization that the CLAP head applies to the embeddings",
        action="store_false",
        alias="--no-l2norm-embedding",
    )
    zero_masking: bool = option(False, "masked tokens enter as zero vectors; needs task.omit_mask")
    mask_prob: float = option(
        0.0,
        "zero masking: the model itself masks each token with this probability",
        within="[0, 1]",
        flag="--model-mask-prob",
    )

    # Speed; the numbers stay the same up to rounding
    attention_backend: str = option(
        "auto",
        "how attention is computed: eager (plain, for reference), sdpa (torch's own kernels), flex (compiled, on CUDA), "
        "fused (this project's operator), triton (its kernels for CUDA), auto (the quickest that is sound on this machine)",
        choices=ATTENTION_BACKENDS,
        new=True,
    )

    # Heads
    pooling: str = option(
        "first",
        "what classification heads see: the first token, the mean of all tokens, or the mean without padding",
        choices=POOLINGS,
        new=True,
    )
    untie_weights_roberta: bool = option(False, "an output projection of its own instead of the token embeddings")
    load_checkpoint_heads: bool = option(False, "also load the classification heads of a checkpoint")
    spectral_norm_classification_head: bool = option(False, "spectral norm on the classification heads")

    # Memory
    checkpoint_activations: bool = option(False, "recompute the layers in the backward pass instead of storing them")
    offload_activations: bool = option(False, "checkpoint_activations, with what is stored moved to the CPU")
    min_params_to_wrap: int = option(
        100_000_000,
        "fully_sharded: put models of at least this many weights together layer by layer, others as a whole",
        within="[0, inf)",
    )

    # Carried by old files
    quant_noise_pq: float | int = carried(*_OLD["quant_noise_pq"])
    quant_noise_pq_block_size: int = carried(*_OLD["quant_noise_pq_block_size"])
    quant_noise_scalar: float | int = carried(*_OLD["quant_noise_scalar"])
    mha_reg_scale_factor: float = carried(*_OLD["mha_reg_scale_factor"])
    ffn_reg_scale_factor: float = carried(*_OLD["ffn_reg_scale_factor"])
    mha_heads_to_keep: int = carried(*_OLD["mha_heads_to_keep"])
    ffn_blocks_to_remove: int = carried(*_OLD["ffn_blocks_to_remove"])
    encoder_xformers_att_config: str | None = carried(*_OLD["encoder_xformers_att_config"])
    export: bool = option(False, "ignored: kept because old files carry it")

    def __post_init__(self) -> None:
        self.variants: dict[str, Variant] = {}  # slot -> chosen variant; filled by ``factory.configuration``

    @classmethod
    def from_node(cls, node: Any) -> RobertaConfig:
        """Read the fields from ``node`` (DictConfig, Namespace or RobertaConfig); what it lacks keeps its default."""
        values = {f.name: getattr(node, f.name, None) for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if value is not None})

    @classmethod
    def variants_of(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Slot -> variant, by the slot's own key in ``values`` or by the older settings."""
        return {slot: values.get(slot) or by_old_settings(slot, values) for slot in OLD_SETTINGS}

    @classmethod
    def check_given(cls, values: Mapping[str, Any]) -> None:
        """Raise ConfigError where the settings that a user gave choose a variant and, by an older setting, another one."""
        for slot, variants in OLD_SETTINGS.items():
            variant = values.get(slot)
            for key in old_settings(slot) if variant else ():
                value, default = values.get(key), getattr(cls, key)
                meant = variants[variant].get(key, value) if variant in variants else default
                if value not in (None, default, meant):
                    raise ConfigError(
                        f"model.{slot}={variant} and model.{key}={str(value).lower()} contradict each other: leave out one"
                    )


# Slot -> variant -> the older settings that mean it; the first one whose settings all hold is the chosen one.
OLD_SETTINGS: dict[str, dict[str, dict[str, bool]]] = {
    "token_mixer": {"self_attention": {}},
    "channel_mixer": {"feed_forward": {}},
    "positions": {
        "none": {"no_token_positional_embeddings": True},
        "learned": {"no_token_positional_embeddings": False, "encoder_learned_pos": True},
        "sinusoidal": {"no_token_positional_embeddings": False, "encoder_learned_pos": False},
    },
    "attention_bias": {
        "none": {"encoder_alibi": False},
        "alibi_asymmetrical": {"encoder_alibi": True, "encoder_alibi_asymmetrical": True},
        "alibi": {"encoder_alibi": True, "encoder_alibi_asymmetrical": False},
    },
    "lm_head": {"roberta": {"contrastive_pretraining": False}, "clap": {"contrastive_pretraining": True}},
}


def old_settings(slot: str) -> list[str]:
    """The older settings that choose between the original's variants of ``slot``."""
    return list(dict.fromkeys(key for settings in OLD_SETTINGS[slot].values() for key in settings))


# Variant -> option -> the older setting that stands for it.
OLD_OPTIONS: dict[str, dict[str, str]] = {"clap": {"initial_beta": "initial_beta", "normalize": "l2norm_embedding"}}


def by_old_settings(slot: str, values: Mapping[str, Any]) -> str:
    defaults = RobertaConfig()

    def holds(settings: Mapping[str, bool]) -> bool:
        given = {key: values.get(key) for key in settings}
        return all(
            bool(getattr(defaults, key) if given[key] is None else given[key]) is settings[key] for key in settings
        )

    return next(variant for variant, settings in OLD_SETTINGS[slot].items() if holds(settings))


def in_old_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with slots that hold one of the original's variants spelt as the original does."""
    values = dict(values)
    for slot, variants in OLD_SETTINGS.items():
        if values.get(slot) in variants:
            values |= variants[values.pop(slot)]
    return values
