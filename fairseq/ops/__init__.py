"""Operators: each fast path beside its reference implementation. ``fairseq.ops.native`` says what is compiled."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "alibi_attention": "alibi_attention",
        "batch_by_size": "batching",
        "complete_blocks": "blocks",
        "dropout_add": "residual",
        "dropout_add_layer_norm": "residual",
        "library": "",
        "native": "",
        "ssm_conv": "ssm",
        "ssm_kernel": "ssm",
    },
)
