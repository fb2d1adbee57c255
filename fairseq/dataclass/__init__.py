"""Typed configuration: sections and components as dataclasses, flags and YAML from them."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqDataclass": "base",
        "option": "base",
        "II": "base",
        "MISSING": "base",
        "ChoiceEnum": "fairseq.compat.plugins",
        "FairseqConfig": "configs",
    },
)
