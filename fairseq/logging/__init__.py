"""Meters, their aggregation by name, progress lines and where they go. Nothing is imported until asked for."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {"meters": "", "metrics": "", "progress": "", "progress_bar": "", "setup": ""},
)
