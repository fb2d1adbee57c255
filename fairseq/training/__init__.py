"""The trainer, one update, the epoch loop and validation."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(__name__, {"Trainer": "trainer", "train": "run"})
