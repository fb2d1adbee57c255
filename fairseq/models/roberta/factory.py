"""From a ``RobertaConfig`` to parts: the one place that reads the configuration of an encoder.

Every function makes one part from the numbers it needs; a slot is filled by whatever is registered under the chosen
name. The order in which ``RobertaEncoder`` calls them is the order in which the original drew random numbers, so that a
seed gives the original's weights.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from fairseq.dataclass import legacy
from fairseq.dataclass.base import MISSING, check_within, convert, field_specs
from fairseq.dataclass.slots import Variant, settled, slots_of, variant_specs
from fairseq.errors import ConfigError
from fairseq.limits import too_large
from fairseq.models.loading import parse_layers
from fairseq.models.roberta.config import (
    ACTIVATIONS,
    ATTENTION_BACKENDS,
    EXTENSIONS,
    OLD_OPTIONS,
    POOLINGS,
    RobertaConfig,
)
from fairseq.modules.encoder import Encoder, EncoderLayer, EncoderOptions
from fairseq.modules.feed_forward import Linear
from fairseq.modules.positions import TokenEmbedding
from fairseq.modules.slots import EncoderShape
from fairseq.registry import HEADS, nearest
from fairseq.rng import undisturbed

# Slot -> the methods that a variant of it must have.
METHODS: dict[str, tuple[str, ...]] = {
    "token_mixer": ("forward",),
    "channel_mixer": ("forward",),
    "positions": ("ids", "check", "forward"),
    "attention_bias": ("dense",),
    "lm_head": ("forward",),
}
WITH_VECTORS = ("learned", "sinusoidal", "scaled_sinusoidal")  # built-in positions that ALiBi takes the place of
MAY_BE_EMPTY = ("channel_mixer", "positions", "attention_bias")


def configuration(args: Any) -> RobertaConfig:
    """The checked configuration behind ``args`` (DictConfig, Namespace or RobertaConfig)."""
    config = RobertaConfig.from_node(args)
    for name in legacy.OUT_OF_SCOPE["model"]:
        legacy.check_value("model", name, getattr(config, name))
    if config.encoder_layers_to_keep:
        config.encoder_layers = len(parse_layers(config.encoder_layers_to_keep))
    config.variants = {
        slot: _variant(config, slot, name, args) for slot, name in settled(type(config), vars(config)).items()
    }
    check_sizes(config)
    check_variants(config)
    return config


def _variant(config: RobertaConfig, slot: str, name: str, args: Any) -> Variant:
    """The variant ``name`` with its options: its own, or the older settings that stand for them."""
    options = {option: getattr(config, key) for option, key in OLD_OPTIONS.get(name, {}).items()}
    for key, spec in variant_specs(slots_of(type(config))[slot], name).items():
        value = getattr(args, key, None)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value)
        value = spec.default if value is None else convert(spec, value, f"model.{key}", stored=True)
        if isinstance(value, str) and value == MISSING:
            raise ConfigError(f"model.{key} is mandatory for {slot}={name}: give --{key.replace('_', '-')}")
        options[key.removeprefix(f"{name}_")] = value
    return Variant(name, options)


def check_sizes(config: RobertaConfig) -> None:
    """Raise ConfigError for a size, probability or name that no model can have."""
    for name, spec in field_specs(type(config)).items():
        check_within(spec, getattr(config, name), f"model.{name}")
    choices: dict[str, tuple[str, ...]] = {
        "activation_fn": ACTIVATIONS,
        "pooler_activation_fn": ACTIVATIONS,
        "attention_backend": ATTENTION_BACKENDS,
        "pooling": POOLINGS,
        "extend_positions": EXTENSIONS,
    }
    for name, known in choices.items():
        value = getattr(config, name)
        if value is not None and value not in known:
            hint = nearest(value, list(known))
            raise ConfigError(f"model.{name} must be one of {', '.join(known)}, but is {value!r} instead{hint}")


def check_variants(config: RobertaConfig) -> None:
    """Raise ConfigError for variants that exclude each other."""
    chosen = {slot: variant.name for slot, variant in config.variants.items()}
    if chosen["attention_bias"] in ("alibi", "alibi_asymmetrical") and chosen["positions"] in WITH_VECTORS:
        raise ConfigError(
            f"model.attention_bias={chosen['attention_bias']} (model.encoder_alibi) takes the place of position embeddings, "
            f"but model.positions is {chosen['positions']!r}: set model.positions=none (--positions none, "
            "or the older --no-token-positional-embeddings) with it"
        )
    if chosen["lm_head"] == "clap" and config.untie_weights_roberta:
        raise ConfigError(
            "model.lm_head=clap (model.contrastive_pretraining) compares with the token embeddings, so the head cannot have "
            "weights of its own: leave out model.untie_weights_roberta"
        )

    if embedding_dim(config) != config.encoder_embed_dim and chosen["lm_head"] != "roberta":
        raise ConfigError(
            f"model.lm_head={chosen['lm_head']} compares features with the token embeddings, so both need one width, but "
            f"model.embedding_size is {config.embedding_size} and model.encoder_embed_dim {config.encoder_embed_dim}: leave "
            "out model.embedding_size or choose model.lm_head=roberta"
        )


def embedding_dim(config: RobertaConfig) -> int:
    """The width of the embeddings."""
    return config.embedding_size or config.encoder_embed_dim


def fill_slot(config: RobertaConfig, slot: str, *args: Any, **parts: Any) -> Any:
    """What the chosen variant of ``slot`` makes of ``args``, ``parts`` and its own options."""
    name, options = config.variants[slot]
    variant = slots_of(type(config))[slot].get(name)
    signature = inspect.signature(variant)
    for part in parts:
        if part not in signature.parameters and not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            raise ConfigError(
                f"model.{slot}={name} takes no {part.replace('_', ' ')}, but model.{part} is {config.variants[part].name!r}: "
                "choose one of the two"
            )
    try:
        signature.bind(*args, **parts, **options)
    except TypeError as error:
        given = ", ".join(options) or "none"
        raise ConfigError(
            f"model.{slot}={name} cannot be built from its options ({given}): {error}; they are the fields of its dataclass "
            f"without {name}_, so its parameters must have these names"
        ) from None
    made = variant(*args, **parts, **options)
    lacks = [method for method in METHODS[slot] if not callable(getattr(made, method, None))]
    if lacks and not (made is None and slot in MAY_BE_EMPTY):
        raise ConfigError(
            f"model.{slot}={name} made {type(made).__name__}, which has no method {lacks[0]}: fairseq/modules/slots.py says what a "
            "variant must offer"
        )
    return made


def encoder_shape(config: RobertaConfig, padding_idx: int) -> EncoderShape:
    """The numbers of ``config`` that the variants of all slots may read."""
    return EncoderShape(
        dim=config.encoder_embed_dim,
        heads=config.encoder_attention_heads,
        ffn_dim=config.encoder_ffn_embed_dim,
        layers=config.encoder_layers,
        max_positions=config.max_source_positions or 0,
        padding_idx=padding_idx,
        activation=config.activation_fn,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout or config.relu_dropout,
        attention_backend=config.attention_backend,
        norm_eps=config.layer_norm_eps,
        bias=config.linear_bias,
        embedding_dim=embedding_dim(config),
    )


def build_token_embedding(config: RobertaConfig, vocab: int, padding_idx: int) -> TokenEmbedding:
    # With either variant the original made the table without a padding row: that row is random and trained.
    contrastive = config.variants["lm_head"].name == "clap"
    return TokenEmbedding(
        vocab,
        embedding_dim(config),
        None if contrastive or config.zero_masking else padding_idx,
        normalize=contrastive and config.l2norm_embedding,
        zero_beyond=config.zero_masking,
    )


def build_layer(config: RobertaConfig, shape: EncoderShape) -> EncoderLayer:
    bias = fill_slot(config, "attention_bias", shape)
    token_mixer = fill_slot(config, "token_mixer", shape, **({} if bias is None else {"attention_bias": bias}))
    channel_mixer = fill_slot(config, "channel_mixer", shape)
    return EncoderLayer(
        token_mixer,
        channel_mixer,
        shape.norm(),
        None if channel_mixer is None else shape.norm(),
        pre_norm=config.encoder_normalize_before,
        dropout=shape.dropout if config.residual_dropout is None else config.residual_dropout,
    )


def build_encoder(config: RobertaConfig, embed_tokens: nn.Module, padding_idx: int) -> Encoder:
    """The whole stack over ``embed_tokens``."""
    shape = encoder_shape(config, padding_idx)
    width = embedding_dim(config)
    positions = fill_slot(config, "positions", replace(shape, dim=width))
    token_types = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
    return Encoder(
        embed_tokens,
        positions,
        replace(shape, dim=width).norm() if config.layernorm_embedding else None,
        [build_layer(config, shape) for _ in range(shape.layers)],
        shape.norm() if config.encoder_normalize_before and config.final_norm else None,
        EncoderOptions(
            embed_scale=1.0 if config.no_scale_embedding else width**0.5,
            dropout=shape.dropout,
            layerdrop=config.encoder_layerdrop,
            activation_checkpointing=config.checkpoint_activations or config.offload_activations,
            offload=config.offload_activations,
            zero_padding=config.zero_padding,
        ),
        token_types,
        None if width == shape.dim else Linear(width, shape.dim),
    )


_MODULES = 1 << 15  # bytes that the Python objects of a layer take


def check_memory(config: RobertaConfig, vocab: int, padding_idx: int) -> None:
    """Raise ConfigError for an encoder that is larger than the memory, before any of it is made.

    One layer is made without memory (on torch's meta device) and counted; a plugin's part that cannot be is not.
    """
    one = copy.copy(config)
    one.encoder_layers = min(config.encoder_layers, 1)
    try:
        with torch.random.fork_rng(devices=()), undisturbed(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder = build_encoder(one, build_token_embedding(one, vocab, padding_idx), padding_idx)
    except ConfigError:
        raise
    except OverflowError as error:
        raise ConfigError(f"a size in the model section is too large: {error}") from None
    except RuntimeError as error:
        if "overflow" not in str(error) and "too large" not in str(error):
            return  # a part that needs real numbers
        raise ConfigError(f"a size in the model section is too large: {str(error).splitlines()[0]}") from None
    except Exception:
        return
    whole, layer = (
        sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
        for part in (encoder, encoder.layers)
    )
    need = whole + (config.encoder_layers - 1) * layer + config.encoder_layers * _MODULES
    excess = too_large(need)
    if excess is not None:
        sizes = ("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "max_positions")
        shown = ", ".join(f"{name}={getattr(config, name)}" for name in sizes)
        raise ConfigError(f"a model of this size needs {excess}: make it smaller (model section: {shown})")


def build_lm_head(config: RobertaConfig, vocab: int, embeddings: nn.Parameter | None, padding_idx: int) -> nn.Module:
    """The masked-LM head, on the token ``embeddings``, or on weights of its own for None."""
    return fill_slot(config, "lm_head", encoder_shape(config, padding_idx), vocab, embeddings)


def build_classification_head(config: RobertaConfig, num_classes: int, inner_dim: int | None) -> nn.Module:
    dim = config.encoder_embed_dim
    return HEADS.get("classification")(
        dim,
        inner_dim or config.pooler_inner_dim or dim,
        num_classes,
        config.pooler_activation_fn,
        config.pooler_dropout,
        do_spectral_norm=config.spectral_norm_classification_head,
        pooling=config.pooling,
        input_dropout=config.pooler_input_dropout,
    )


def build_span_head(config: RobertaConfig) -> nn.Module:
    return HEADS.get("span")(config.encoder_embed_dim)


def build_token_head(config: RobertaConfig, num_classes: int) -> nn.Module:
    return HEADS.get("token")(config.encoder_embed_dim, num_classes, config.pooler_dropout)
