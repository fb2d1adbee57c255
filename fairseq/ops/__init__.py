"""Operators: each fast path beside its reference implementation. ``fairseq.ops.native`` says what is compiled."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "alibi_attention": "alibi_attention",
        "band_attention": "band_attention",
        "batch_by_size": "batching",
        "complete_blocks": "blocks",
        "dropout_add": "residual",
        "dropout_add_layer_norm": "residual",
        "fast_feed_forward": "fff",
        "fff_routes": "fff",
        "library": "",
        "native": "",
        "ssm_conv": "ssm",
        "ssm_kernel": "ssm",
    },
)
