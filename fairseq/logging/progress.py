"""Progress lines: json, simple, tqdm or none, exactly as the original printed them, because scripts parse them.

A stats line is one log record whose logger name is the tag (``train_inner``, ``train``, ``valid``, ...) and whose
message is the line alone. Numbers are printed as ``{:g}`` strings (six significant digits); integers from a
million on are printed exactly, where the original lost digits.

Statistics also go to tensorboard and wandb, both imported only when asked for; a missing package is one warning, not
the end of a training run.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Number
from typing import Any

import torch

from fairseq.errors import ConfigError, FairseqError
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.logging.setup import STATS_LOGGER, add_log_file, close_log_file, warn_once

_logger = logging.getLogger(__name__)

_writers: dict[str, Any] = {}  # one SummaryWriter a directory, for the whole process: bars come and go every epoch
_failed: set[str] = set()  # classes of loggers


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


class TensorboardLogger:
    """Scalars to ``<logdir>/<tag>``."""

    def __init__(self, logdir: str) -> None:
        self.logdir = os.path.abspath(logdir)  # jobs of one process (--multirun) each have a working directory

    def write(self, stats: Mapping[str, Any], tag: str | None, step: int) -> None:
        writer = self._writer(tag or "")
        if writer is None:
            return
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
                    _logger,
                    "tensorboard_logdir is ignored: package tensorboard is not installed (pip install tensorboard)",
                )
                return None
            try:
                _writers[path] = SummaryWriter(path)
            except OSError as error:
                raise ConfigError(f"cannot write to tensorboard_logdir {self.logdir}: {error.strerror}") from error
            _writers[path].add_text("sys.argv", str(sys.argv))
        return _writers[path]


class WandbLogger:
    """Scalars ``<tag>/<name>`` to the wandb run of this process."""

    def __init__(self, project: str, run_name: str | None) -> None:
        try:
            import wandb
        except ImportError:
            self.wandb: Any = None
            warn_once(_logger, "wandb_project is ignored: package wandb is not installed (pip install wandb)")
            return
        self.wandb = wandb
        if wandb.run is None:
            wandb.init(project=project, name=run_name)

    def write(self, stats: Mapping[str, Any], tag: str | None, step: int) -> None:
        if self.wandb is None:
            return
        prefix = "" if tag is None else f"{tag}/"
        self.wandb.log({f"{prefix}{key}": value for key, value in scalars(stats).items()}, step=step)

    def update_config(self, config: Mapping[str, Any]) -> None:
        if self.wandb is not None:
            self.wandb.config.update(config, allow_val_change=True)


@atexit.register
def close_writers() -> None:
    for writer in _writers.values():
        with contextlib.suppress(OSError):
            writer.close()
    _writers.clear()


@contextlib.contextmanager
def own_logs(log_file: str | None) -> Iterator[None]:
    """What a run writes to is closed at its end, so that the next run of the process writes to its own.

    Its log file (that of the directory where the run begins), the files of tensorboard, the wandb run, if it began one.
    Warnings that are given once are given once per run, and a logger that failed in the run before is tried again.
    """
    log_file = None if log_file is None else os.path.abspath(log_file)
    wandb = sys.modules.get("wandb")
    had_run = getattr(wandb, "run", None) is not None
    warn_once.cache_clear()
    _failed.clear()
    try:
        yield
    finally:
        if log_file is not None:
            close_log_file(log_file)
        close_writers()
        wandb = sys.modules.get("wandb")
        if not had_run and getattr(wandb, "run", None) is not None:
            wandb.finish()  # type: ignore[union-attr]


logger = logging.getLogger(STATS_LOGGER)


def format_stat(stat: Any) -> Any:
    """What is printed for one value: a string for numbers and meters, a number or list for tensors."""
    if isinstance(stat, Number):
        # Counts keep all their digits; six are enough for everything measured, whole or not.
        return str(int(stat)) if isinstance(stat, Integral) else f"{stat:g}"
    if isinstance(stat, AverageMeter):
        return f"{stat.avg:.3f}"
    if isinstance(stat, TimeMeter):
        return f"{round(stat.avg):g}"
    if isinstance(stat, StopwatchMeter):
        return round(stat.sum)
    if torch.is_tensor(stat):
        return stat.tolist()
    return stat


def _formatted(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {key: format_stat(value) for key, value in stats.items()}


def emit(message: str, tag: str | None) -> None:
    """Log ``message`` at INFO under the name ``tag``."""
    if logger.isEnabledFor(logging.INFO):
        record = logger.makeRecord(tag or logger.name, logging.INFO, __file__, 0, message, (), None)
        logger.handle(record)


class BaseProgressBar:
    """An iterator that also prints statistics, and writes them to its ``loggers`` (tensorboard, wandb).

    ``iterable`` may be partly consumed: its attribute ``n`` is the position to count from. ``epoch`` is one-based.
    """

    def __init__(
        self, iterable: Any, epoch: int | None = None, prefix: str | None = None, log_interval: int | None = None
    ) -> None:
        self.iterable = iterable
        self.n = getattr(iterable, "n", 0)
        self.epoch = epoch
        self.log_interval = log_interval
        self.prefix = " | ".join(part for part in ("" if epoch is None else f"epoch {epoch:03d}", prefix or "") if part)
        self.i: int | None = None
        self.size: int | None = None
        self.loggers: list[TensorboardLogger | WandbLogger] = []

    def __len__(self) -> int:
        return len(self.iterable)

    def __enter__(self) -> BaseProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        self.size = len(self.iterable)
        for i, item in enumerate(self.iterable, start=self.n):
            self.i = i
            yield item

    def log(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Statistics in the middle of an epoch, after ``step`` updates (default: items seen)."""
        self._write(stats, tag, step)
        self._log(stats, tag, step)

    def print(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Statistics at the end of an epoch or validation."""
        self._write(stats, tag, step)
        self._print(stats, tag)

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Tell the loggers that keep one the configuration of the run."""
        self._tell(lambda logger: logger.update_config(config))

    def _write(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        self._tell(lambda logger: logger.write(stats, tag, stats.get("num_updates", -1) if step is None else step))

    def _tell(self, what: Callable[[TensorboardLogger | WandbLogger], None]) -> None:
        """Do ``what`` with every logger; one that fails (a full disk, a lost connection) is named once and left out."""
        for logger in self.loggers:
            name = type(logger).__name__
            if name in _failed:
                continue
            try:
                what(logger)
            except FairseqError:
                raise
            except Exception as error:
                _failed.add(name)
                _logger.warning("%s has failed and is left out from now on: %s: %s", name, type(error).__name__, error)

    def _log(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        pass

    def _print(self, stats: Mapping[str, Any], tag: str | None) -> None:
        pass

    def _is_due(self, step: int | None) -> bool:
        step = step or self.i or 0
        return step > 0 and bool(self.log_interval) and step % self.log_interval == 0  # type: ignore[operator]


class JsonProgressBar(BaseProgressBar):
    """One JSON object a line."""

    def _log(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        if self._is_due(step):
            position = self._position()
            if self.epoch is not None and self.i is not None and self.size:
                position["update"] = round(self.epoch - 1 + (self.i + 1) / float(self.size), 3)
            emit(json.dumps(position | _formatted(stats)), tag)

    def _print(self, stats: Mapping[str, Any], tag: str | None) -> None:
        prefix = f"{tag}_" if tag is not None else ""
        named = {f"{prefix}{key}": value for key, value in _formatted(stats).items()}
        emit(json.dumps(self._position() | named), tag)

    def _position(self) -> dict[str, Any]:
        return {} if self.epoch is None else {"epoch": self.epoch}


class NoopProgressBar(BaseProgressBar):
    """Prints nothing."""


class SimpleProgressBar(BaseProgressBar):
    """Plain lines for log files and terminals without a cursor."""

    def _log(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        if self._is_due(step):
            position = 0 if self.i is None else self.i + 1
            values = ", ".join(f"{key}={str(value).strip()}" for key, value in _formatted(stats).items())
            emit(f"{self.prefix}:  {position:5d} / {self.size or len(self):d} {values}", tag)

    def _print(self, stats: Mapping[str, Any], tag: str | None) -> None:
        values = " | ".join(f"{key} {str(value).strip()}" for key, value in _formatted(stats).items())
        emit(f"{self.prefix} | {values}", tag)


class TqdmProgressBar(SimpleProgressBar):
    """A live bar on stderr; at the end of an epoch a plain line."""

    def __init__(
        self, iterable: Any, epoch: int | None = None, prefix: str | None = None, log_interval: int | None = None
    ) -> None:
        super().__init__(iterable, epoch, prefix, log_interval)
        from tqdm import tqdm  # not needed by the other formats

        hidden = logger.getEffectiveLevel() > logging.INFO
        self.iterable = tqdm(iterable, self.prefix, initial=self.n, leave=False, disable=hidden)

    def _log(self, stats: Mapping[str, Any], tag: str | None, step: int | None) -> None:
        self.iterable.set_postfix({key: str(value) for key, value in _formatted(stats).items()}, refresh=False)


FORMATS: dict[str, type[BaseProgressBar]] = {
    "json": JsonProgressBar,
    "none": NoopProgressBar,
    "simple": SimpleProgressBar,
    "tqdm": TqdmProgressBar,
}


def progress_bar(
    iterator: Any,
    log_format: str | None = None,
    log_interval: int = 100,
    log_file: str | None = None,
    epoch: int | None = None,
    prefix: str | None = None,
    tensorboard_logdir: str | None = None,
    default_log_format: str = "tqdm",
    wandb_project: str | None = None,
    wandb_run_name: str | None = None,
    azureml_logging: bool | None = False,
    aim_repo: str | None = None,
    aim_run_hash: str | None = None,
    aim_param_checkpoint_dir: str | None = None,
) -> BaseProgressBar:
    """Wrap ``iterator`` in the bar for ``log_format`` (default ``default_log_format``) and the requested loggers.

    A live bar needs a terminal: without one on stderr, ``tqdm`` becomes ``simple``. Log files and loggers are for the master
    process only; the caller passes None elsewhere. Raises ConfigError for an unknown format.
    """
    name = log_format or default_log_format
    if name not in FORMATS:
        raise ConfigError(f"unknown log_format {name!r}; choose one of {', '.join(FORMATS)}")
    if name == "tqdm" and not sys.stderr.isatty():
        name = "simple"
    if log_file is not None:
        add_log_file(log_file)

    bar = FORMATS[name](iterator, epoch, prefix, log_interval)
    if tensorboard_logdir:
        bar.loggers.append(TensorboardLogger(tensorboard_logdir))
    if wandb_project:
        bar.loggers.append(WandbLogger(wandb_project, wandb_run_name))
    for option, given in (("azureml_logging", azureml_logging), ("aim_repo", aim_repo)):
        if given:
            warn_once(
                _logger,
                f"{option} is ignored: this fairseq logs to tensorboard (tensorboard_logdir) and wandb (wandb_project)",
            )
    return bar
