"""From a ``RobertaConfig`` to parts: the one place that reads the configuration of an encoder.

Every function makes one part from the numbers it needs. The order in which ``RobertaEncoder`` calls them is the order
in which the original drew random numbers, so that a seed gives the original's weights.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fairseq.dataclass import legacy
from fairseq.errors import ConfigError
from fairseq.models.loading import parse_layers
from fairseq.models.roberta.config import ACTIVATIONS, ATTENTION_BACKENDS, POOLINGS, RobertaConfig
from fairseq.modules.attention_bias import AttentionBias
from fairseq.modules.encoder import Encoder, EncoderLayer, EncoderOptions
from fairseq.modules.positions import TokenEmbedding
from fairseq.registry import ATTENTION_BIASES, CHANNEL_MIXERS, HEADS, POSITIONS, TOKEN_MIXERS, nearest

PROBABILITIES = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "relu_dropout",
    "pooler_dropout",
    "encoder_layerdrop",
    "mask_prob",
)


def configuration(args: Any) -> RobertaConfig:
    """The checked configuration behind ``args`` (DictConfig, Namespace or RobertaConfig)."""
    config = RobertaConfig.from_node(args)
    for name in legacy.OUT_OF_SCOPE["model"]:
        legacy.check_value("model", name, getattr(config, name))
    if config.encoder_layers_to_keep:
        config.encoder_layers = len(parse_layers(config.encoder_layers_to_keep))
    check_sizes(config)
    check_variants(config)
    return config


def check_sizes(config: RobertaConfig) -> None:
    """Raise ConfigError for a size, probability or name that no model can have."""
    for name in ("encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"):
        if getattr(config, name) < 1:
            raise ConfigError(f"model.{name} must be at least 1, but is {getattr(config, name)} instead")
    if config.encoder_layers < 0:
        raise ConfigError(f"model.encoder_layers must not be negative, but is {config.encoder_layers}")
    if config.encoder_embed_dim % config.encoder_attention_heads:
        raise ConfigError(
            f"model.encoder_embed_dim must be a multiple of model.encoder_attention_heads, but {config.encoder_embed_dim} "
            f"is not one of {config.encoder_attention_heads}"
        )
    for name in PROBABILITIES:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"model.{name} must lie between 0 and 1, but is {getattr(config, name)} instead")
    for name, known in (
        ("activation_fn", ACTIVATIONS),
        ("pooler_activation_fn", ACTIVATIONS),
        ("attention_backend", ATTENTION_BACKENDS),
        ("pooling", POOLINGS),
    ):
        value = getattr(config, name)
        if value not in known:
            hint = nearest(value, list(known))
            raise ConfigError(f"model.{name} must be one of {', '.join(known)}, but is {value!r} instead{hint}")
    if config.max_positions is not None and config.max_positions < 1:
        raise ConfigError(f"model.max_positions must be at least 1, but is {config.max_positions} instead")


def check_variants(config: RobertaConfig) -> None:
    """Raise ConfigError for variants that exclude each other."""
    if config.encoder_alibi and not config.no_token_positional_embeddings:
        raise ConfigError(
            "model.encoder_alibi takes the place of position embeddings: set model.no_token_positional_embeddings=true "
            "(--no-token-positional-embeddings) with it"
        )
    if config.contrastive_pretraining and config.untie_weights_roberta:
        raise ConfigError(
            "model.contrastive_pretraining compares with the token embeddings, so the head cannot have weights of its "
            "own: leave out model.untie_weights_roberta"
        )


def build_token_embedding(config: RobertaConfig, vocab: int, padding_idx: int) -> TokenEmbedding:
    # With either variant the original made the table without a padding row: that row is random and trained.
    without_padding = config.contrastive_pretraining or config.zero_masking
    return TokenEmbedding(
        vocab,
        config.encoder_embed_dim,
        None if without_padding else padding_idx,
        normalize=config.contrastive_pretraining and config.l2norm_embedding,
        zero_beyond=config.zero_masking,
    )


def build_positions(config: RobertaConfig, padding_idx: int) -> nn.Module | None:
    """Learned or sinusoidal positions, or None. The table has rows for 0 ... padding_idx and one a position."""
    if config.no_token_positional_embeddings:
        return None
    assert config.max_source_positions is not None
    variant = POSITIONS.get("learned" if config.encoder_learned_pos else "sinusoidal")
    return variant(config.max_source_positions + padding_idx + 1, config.encoder_embed_dim, padding_idx)


def build_attention_bias(config: RobertaConfig) -> AttentionBias | None:
    if not config.encoder_alibi:
        return None
    return ATTENTION_BIASES.get("alibi")(config.encoder_attention_heads, asymmetrical=config.encoder_alibi_asymmetrical)


def build_layer(config: RobertaConfig) -> EncoderLayer:
    dim = config.encoder_embed_dim
    token_mixer = TOKEN_MIXERS.get("self_attention")(
        dim, config.encoder_attention_heads, dropout=config.attention_dropout, backend=config.attention_backend
    )
    channel_mixer = CHANNEL_MIXERS.get("feed_forward")(
        dim,
        config.encoder_ffn_embed_dim,
        activation=config.activation_fn,
        activation_dropout=config.activation_dropout or config.relu_dropout,
    )
    return EncoderLayer(
        dim, token_mixer, channel_mixer, pre_norm=config.encoder_normalize_before, dropout=config.dropout
    )


def build_encoder(config: RobertaConfig, embed_tokens: nn.Module, padding_idx: int) -> Encoder:
    """The whole stack over ``embed_tokens``."""
    dim = config.encoder_embed_dim
    return Encoder(
        embed_tokens,
        build_positions(config, padding_idx),
        nn.LayerNorm(dim) if config.layernorm_embedding else None,
        [build_layer(config) for _ in range(config.encoder_layers)],
        nn.LayerNorm(dim) if config.encoder_normalize_before else None,
        EncoderOptions(
            padding_idx=padding_idx,
            embed_scale=1.0 if config.no_scale_embedding else dim**0.5,
            dropout=config.dropout,
            layerdrop=config.encoder_layerdrop,
            recompute=config.checkpoint_activations or config.offload_activations,
            offload=config.offload_activations,
        ),
        build_attention_bias(config),
    )


def build_lm_head(config: RobertaConfig, vocab: int, embeddings: nn.Parameter | None) -> nn.Module:
    """The masked-LM head, on the token ``embeddings``, or (never the CLAP head) on weights of its own for None."""
    if config.contrastive_pretraining:
        return HEADS.get("clap")(embeddings, initial_beta=config.initial_beta, normalize=config.l2norm_embedding)
    return HEADS.get("roberta")(config.encoder_embed_dim, vocab, config.activation_fn, embeddings)


def build_classification_head(config: RobertaConfig, num_classes: int, inner_dim: int | None) -> nn.Module:
    dim = config.encoder_embed_dim
    return HEADS.get("classification")(
        dim,
        inner_dim or dim,
        num_classes,
        config.pooler_activation_fn,
        config.pooler_dropout,
        config.spectral_norm_classification_head,
        config.pooling,
    )


def build_span_head(config: RobertaConfig) -> nn.Module:
    return HEADS.get("span")(config.encoder_embed_dim)


def build_token_head(config: RobertaConfig, num_classes: int) -> nn.Module:
    return HEADS.get("token")(config.encoder_embed_dim, num_classes, config.pooler_dropout)
