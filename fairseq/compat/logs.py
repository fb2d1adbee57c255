"""Logging as old training scripts set it up."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from fairseq.logging.progress import BaseProgressBar, progress_bar
from fairseq.logging.setup import configure_logging


def reset_logging() -> None:
    """The commands' log format, whatever handlers the root logger has."""
    configure_logging(reset=True)


@contextlib.contextmanager
def rename_logger(logger: logging.Logger, new_name: str | None) -> Iterator[logging.Logger]:
    """``logger`` under another name for a while."""
    old_name = logger.name
    logger.name = old_name if new_name is None else new_name
    yield logger
    logger.name = old_name


def build_progress_bar(
    args: Any,
    iterator: Any,
    epoch: int | None = None,
    prefix: str | None = None,
    default: str = "tqdm",
    no_progress_bar: str = "none",
) -> BaseProgressBar:
    """`progress_bar` with the settings of a flat Namespace."""
    if getattr(args, "no_progress_bar", False):
        default = no_progress_bar
    return progress_bar(
        iterator,
        log_format=getattr(args, "log_format", None),
        log_interval=getattr(args, "log_interval", 100),
        epoch=epoch,
        prefix=prefix,
        tensorboard_logdir=getattr(args, "tensorboard_logdir", None),
        default_log_format=default,
    )
