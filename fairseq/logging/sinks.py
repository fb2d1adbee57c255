"""Where statistics go besides the log: tensorboard and wandb, both imported only when asked for.

A missing package is one warning, not the end of a training run.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping
from numbers import Number
from typing import Any

import torch

from fairseq.errors import ConfigError
from fairseq.logging.meters import AverageMeter

logger = logging.getLogger(__name__)

_writers: dict[str, Any] = {}  # one SummaryWriter a directory, for the whole process: bars come and go every epoch
_warned: set[str] = set()


def warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


def warn_unsupported(option: str) -> None:
    warn_once(f"{option} is ignored: this fairseq logs to tensorboard (tensorboard_logdir) and wandb (wandb_project)")


def scalars(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The plottable part of ``stats``; the update count is the abscissa."""
    values: dict[str, Any] = {}
    for key, value in stats.items():
        if key == "num_updates":
            continue
        if isinstance(value, AverageMeter):
            values[key] = value.val
        elif isinstance(value, Number):
            values[key] = value
        elif torch.is_tensor(value) and value.numel() == 1:
            values[key] = value.item()
    return values


class TensorboardSink:
    """Scalars to ``<logdir>/<tag>``."""

    def __init__(self, logdir: str) -> None:
        self.logdir = os.path.abspath(logdir)  # jobs of one process (--multirun) each have a working directory

    def write(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        writer = self._writer(tag or "")
        if writer is None:
            return
        step = stats.get("num_updates", -1) if step is None else step
        for key, value in scalars(stats).items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Tensorboard keeps no configuration."""

    def _writer(self, tag: str) -> Any:
        path = os.path.join(self.logdir, tag)
        if path not in _writers:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                warn_once(
                    "tensorboard_logdir is ignored: package tensorboard is not installed (pip install tensorboard)"
                )
                return None
            try:
                _writers[path] = SummaryWriter(path)
            except OSError as error:
                raise ConfigError(f"cannot write to tensorboard_logdir {self.logdir}: {error.strerror}") from error
            _writers[path].add_text("sys.argv", str(sys.argv))
        return _writers[path]


class WandbSink:
    """Scalars ``<tag>/<name>`` to the wandb run of this process."""

    def __init__(self, project: str, run_name: str | None = None) -> None:
        try:
            import wandb
        except ImportError:
            self.wandb: Any = None
            warn_once("wandb_project is ignored: package wandb is not installed (pip install wandb)")
            return
        self.wandb = wandb
        if wandb.run is None:
            wandb.init(project=project, name=run_name)

    def write(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        if self.wandb is None:
            return
        step = stats.get("num_updates", -1) if step is None else step
        prefix = "" if tag is None else f"{tag}/"
        self.wandb.log({f"{prefix}{key}": value for key, value in scalars(stats).items()}, step=step)

    def update_config(self, config: Mapping[str, Any]) -> None:
        if self.wandb is not None:
            self.wandb.config.update(config, allow_val_change=True)


@atexit.register
def close_writers() -> None:
    for writer in _writers.values():
        writer.close()
    _writers.clear()
