"""Losses. Adding one: a file with a class registered by ``register_criterion``."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "CRITERION_REGISTRY": "fairseq_criterion",
        "FairseqCriterion": "fairseq_criterion",
        "LegacyFairseqCriterion": "fairseq_criterion",
        "build_criterion": "fairseq_criterion",
        "register_criterion": "fairseq_criterion",
    },
)
