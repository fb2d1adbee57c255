"""The state of a run as named parts, and which checkpoint a run starts from.

A part gives its state and takes it back. All parts are collected before anything is written, so that processes that share
a model may collect together before one of them writes. `to_checkpoint` and `from_checkpoint` know the place of each part
in the file; what a part holds is its own matter.

No part holds the random streams: order and masks follow from the seed and the epoch, dropout from the seed and the
number of updates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fairseq.checkpoint import schema
from fairseq.checkpoint.store import last_name
from fairseq.dataclass.base import literal_dict
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import PathManager
from fairseq.logging.setup import TRAIN_LOGGER

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import CheckpointConfig

logger = logging.getLogger(TRAIN_LOGGER)


class StatefulPart(NamedTuple):
    """One named piece of a run's state."""

    name: str
    state: Callable[[], Any]
    load: Callable[[Any], None]


@dataclass(frozen=True)
class Resets:
    """What a run does not take over from the checkpoint that it starts from (``--reset-optimizer`` and so on)."""

    optimizer: bool = False
    lr_scheduler: bool = False
    meters: bool = False
    dataloader: bool = False

    @classmethod
    def of(cls, cfg: CheckpointConfig) -> Resets:
        return cls(
            bool(cfg.reset_optimizer),
            bool(cfg.reset_lr_scheduler),
            bool(cfg.reset_meters),
            bool(cfg.reset_dataloader),
        )


NO_RESETS = Resets()


@dataclass
class EarlyStop:
    """Counts validations without a strict improvement (``--patience``)."""

    best: float | None = None
    runs: int = 0

    def update(self, value: float, maximize: bool) -> int:
        """The number of validations in a row, this one included, that did not improve."""
        if self.best is None or (value > self.best if maximize else value < self.best):
            self.best, self.runs = value, 0
        else:
            self.runs += 1
        return self.runs

    def state_dict(self) -> dict[str, Any] | None:
        """None before the first validation."""
        return None if self.best is None else asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.runs = astuple(EarlyStop(**state))


def to_checkpoint(
    cfg: Mapping[str, Any], states: Mapping[str, Any], position: Mapping[str, Any], val_loss: float | None
) -> dict[str, Any]:
    """The checkpoint of the parts' ``states`` at ``position``, the state of the data iterator."""
    early_stop = states["early_stop"]
    entry = schema.history_entry(
        **states["classes"], **{key: states[key] for key in ("lr_scheduler_state", "num_updates")}
    )
    return schema.build_state(
        cfg=cfg,
        model=states["model"],
        criterion=states.get("criterion"),
        optimizer_history=[*states["optimizer_history"], entry],
        task_state=states["task"],
        extra_state=schema.extra_state(
            metrics=states["meters"],
            previous_training_time=states["training_time"],
            train_iterator=position,
            val_loss=val_loss,
            best=states["best"],
            additions={} if early_stop is None else {"early_stop": early_stop},
            **states.get("ema", {}),
        ),
        optimizer_state=states["optimizer"],
    )


def from_checkpoint(checkpoint: Mapping[str, Any], resets: Resets) -> dict[str, Any]:
    """The states of the parts that a run takes over from ``checkpoint``; a part that is not in it stays as it is."""
    extra = checkpoint["extra_state"]
    states = {
        "model": checkpoint["model"],
        "criterion": checkpoint.get("criterion"),
        "optimizer_history": checkpoint["optimizer_history"],
        "ema": extra,
        "task": checkpoint.get("task_state") or {},
        "training_time": extra.get("previous_training_time", 0.0),
    }
    if checkpoint.get("last_optimizer_state") is not None and not resets.optimizer:
        last = checkpoint["optimizer_history"][-1]
        states["classes"] = {key: last[key] for key in ("criterion_name", "optimizer_name")}
        states["optimizer"] = checkpoint["last_optimizer_state"]
        states["num_updates"] = last["num_updates"]
        if not resets.lr_scheduler:
            states["lr_scheduler_state"] = last["lr_scheduler_state"]
    if not resets.meters:
        if not resets.optimizer:
            states["early_stop"], states["best"] = extra.get("early_stop"), extra.get("best")
        if extra["train_iterator"]["iterations_in_epoch"] > 0:
            states["meters"] = extra.get("metrics")
    return {name: state for name, state in states.items() if state is not None}


def check_same(source: str, what: str, saved: str, own: str) -> None:
    """Raise CheckpointError if the class ``saved`` in ``source`` is not this run's."""
    if saved != own:
        raise CheckpointError(
            f"{source} was trained with the {what} {saved}, but this run uses {own}; use the same one, or give "
            "--reset-optimizer to start with a fresh optimizer"
        )


class Resumable(Protocol):
    """What `load_checkpoint` asks of a trainer."""

    def load_checkpoint(
        self, filename: str, resets: Resets = ..., optimizer_overrides: Mapping[str, Any] | None = ...
    ) -> dict[str, Any] | None: ...

    def get_train_iterator(self, epoch: int, **options: Any) -> EpochBatchIterator: ...


def load_checkpoint(
    cfg: CheckpointConfig, trainer: Resumable, **iterator_args: Any
) -> tuple[dict[str, Any] | None, EpochBatchIterator]:
    """Restore ``trainer`` as the ``checkpoint`` section ``cfg`` says.

    Returns the checkpoint's ``extra_state`` (None without a checkpoint) and the iterator at the place where training
    goes on. ``iterator_args`` go to ``trainer.get_train_iterator``.
    """
    path, resets = starting_point(cfg)
    overrides = literal_dict(cfg.optimizer_overrides, "--optimizer-overrides")
    extra_state = trainer.load_checkpoint(path, resets, overrides)
    if extra_state is None or resets.dataloader:
        return extra_state, trainer.get_train_iterator(epoch=1, load_dataset=True, **iterator_args)
    position = extra_state["train_iterator"]
    epoch_itr = trainer.get_train_iterator(epoch=position["epoch"], load_dataset=True, **iterator_args)
    epoch_itr.load_state_dict(position)
    return extra_state, epoch_itr


def starting_point(cfg: CheckpointConfig) -> tuple[str, Resets]:
    """The file that a run starts from, if it exists, and what is not taken over from it."""
    resets = Resets.of(cfg)
    if cfg.finetune_from_model is not None and resets != NO_RESETS:
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer"
            " or reset_lr_scheduler or reset_meters or reset_dataloader"
        )
    suffix = cfg.checkpoint_suffix or ""
    if cfg.restore_file != last_name():
        if cfg.finetune_from_model:
            raise ConfigError(
                f"--finetune-from-model and --restore-file ({cfg.restore_file}) can not be specified together: keep one"
            )
        path = cfg.restore_file.replace(".pt", suffix + ".pt") if suffix else cfg.restore_file
        if not PathManager.exists(path):
            raise CheckpointError(
                f"--restore-file {path} does not exist; give the path of a checkpoint, or leave the option out to start "
                f"from {cfg.save_dir}/{last_name()} when there is one and from scratch otherwise"
            )
        return path, resets
    last = str(Path(cfg.save_dir) / last_name(suffix))
    if PathManager.exists(last):
        return last, resets
    if cfg.continue_once is not None:
        if not PathManager.exists(cfg.continue_once):
            raise CheckpointError(f"--continue-once {cfg.continue_once} does not exist")
        return cfg.continue_once, resets
    if cfg.finetune_from_model is not None:
        if not PathManager.exists(cfg.finetune_from_model):
            raise ConfigError(f"--finetune-from-model {cfg.finetune_from_model} does not exist")
        logger.info(
            "loading pretrained model from %s: optimizer, schedule, meters and data start anew", cfg.finetune_from_model
        )
        return cfg.finetune_from_model, Resets(optimizer=True, lr_scheduler=True, meters=True, dataloader=True)
    return last, resets
