"""Encoder parts, one file a variant; they take numbers and built children, never a configuration."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "ALiBi": "attention_bias",
        "ClapHead": "lm_head",
        "Encoder": "encoder",
        "EncoderContext": "slots",
        "EncoderLayer": "encoder",
        "EncoderOptions": "encoder",
        "EncoderShape": "slots",
        "FeedForward": "feed_forward",
        "LayerNorm": "fairseq.compat.models",
        "LearnedPositionalEmbedding": "fairseq.compat.positions",
        "MultiheadSelfAttention": "attention",
        "PositionalEmbedding": "fairseq.compat.positions",
        "RobertaClassificationHead": "task_heads",
        "RobertaLMHead": "lm_head",
        "SinusoidalPositionalEmbedding": "fairseq.compat.positions",
        "TokenEmbedding": "positions",
        "get_activation_fn": "feed_forward",
        "init_bert_params": "initialization",
    },
)
