"""Old import path of `fairseq.logging.progress`."""

from __future__ import annotations

from fairseq.logging.progress import (
    BaseProgressBar,
    JsonProgressBar,
    NoopProgressBar,
    SimpleProgressBar,
    TqdmProgressBar,
    build_progress_bar,
    format_stat,
    logger,
    progress_bar,
)

__all__ = [
    "BaseProgressBar",
    "JsonProgressBar",
    "NoopProgressBar",
    "SimpleProgressBar",
    "TqdmProgressBar",
    "build_progress_bar",
    "format_stat",
    "logger",
    "progress_bar",
]
