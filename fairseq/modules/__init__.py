"""Encoder parts, one file a variant; they take numbers and built children, never a configuration."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "ALiBi": "attention_bias",
        "ClapHead": "clap_head",
        "Encoder": "encoder",
        "EncoderContext": "context",
        "EncoderLayer": "encoder_layer",
        "EncoderOptions": "encoder",
        "FeedForward": "feed_forward",
        "LayerNorm": "layer_norm",
        "LearnedPositionalEmbedding": "learned_positional_embedding",
        "MultiheadSelfAttention": "attention",
        "PositionalEmbedding": "positional_embedding",
        "RobertaClassificationHead": "classification_head",
        "RobertaLMHead": "lm_head",
        "SinusoidalPositionalEmbedding": "sinusoidal_positional_embedding",
        "TokenEmbedding": "embeddings",
        "get_activation_fn": "activations",
        "init_bert_params": "initialization",
    },
)
