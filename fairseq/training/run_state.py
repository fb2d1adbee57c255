"""What a checkpoint takes from a trainer, what a trainer takes back from it, and which checkpoint a run starts from."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.checkpoint import schema
from fairseq.checkpoint.reader import read
from fairseq.dataclass.base import literal_dict
from fairseq.dataclass.state import config_to_state
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.models.loading import load_weights
from fairseq.optim import precision

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import CheckpointConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(TRAIN_LOGGER)


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


def collect(trainer: Trainer, position: dict[str, Any], val_loss: float | None) -> dict[str, Any]:
    """The checkpoint of ``trainer`` at ``position``, the state of its data iterator."""
    additions: dict[str, Any] = {}
    if trainer.cfg.checkpoint.patience > 0 and trainer.early_stop.best is not None:
        additions["early_stop"] = asdict(trainer.early_stop)
    history = schema.history_entry(
        type(trainer.criterion).__name__,
        type(trainer.optimizer).__name__,
        trainer.lr_scheduler.state_dict(),
        trainer.get_num_updates(),
    )
    return schema.build_state(
        cfg=config_to_state(trainer.cfg),
        model=precision.full_precision_state(trainer.model, trainer.optimizer),
        criterion=trainer.criterion.state_dict() if _has_parameters(trainer.criterion) else None,
        optimizer_history=[*trainer.optimizer_history, history],
        task_state=trainer.task.state_dict(),
        extra_state=schema.extra_state(
            metrics=metrics.state_dict(),
            previous_training_time=trainer.cumulative_training_time(),
            train_iterator=position,
            val_loss=val_loss,
            best=trainer.store.best,
            additions=additions,
            **(trainer.ema_state()),
        ),
        optimizer_state=None if trainer.cfg.checkpoint.no_save_optimizer_state else trainer.optimizer.state_dict(),
    )


def save(trainer: Trainer, epoch_itr: EpochBatchIterator, val_loss: float | None) -> Path | None:
    """Write the checkpoint files that are due after this update; returns the first one."""
    if not trainer.is_data_parallel_master:
        return None
    return trainer.store.save(
        lambda: collect(trainer, epoch_itr.state_dict(), val_loss),
        epoch_itr.epoch,
        trainer.get_num_updates(),
        epoch_itr.end_of_epoch(),
        val_loss,
    )


def save_crash(trainer: Trainer) -> None:
    """Keep the state of an update that failed, for inspection."""
    if trainer.is_data_parallel_master and not trainer.cfg.checkpoint.no_save:
        nowhere = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
        trainer.store.save_crash(collect(trainer, nowhere, None))


def restore(
    trainer: Trainer,
    filename: str,
    reset_optimizer: bool,
    reset_lr_scheduler: bool,
    optimizer_overrides: dict[str, Any] | None,
    reset_meters: bool,
) -> dict[str, Any] | None:
    """Load ``filename`` into ``trainer``; returns its ``extra_state``, or None when there is no such file."""
    if not PathManager.exists(filename):
        logger.info("No existing checkpoint found %s", filename)
        return None
    logger.info("Preparing to load checkpoint %s", filename)
    state = read(filename, with_config=False)
    load_weights(trainer.model, state["model"], trainer.cfg.model, filename, strict=True)
    try:
        return _restore(
            trainer, state, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {filename} is malformed: {error!r}") from error


def _restore(
    trainer: Trainer,
    state: dict[str, Any],
    filename: str,
    reset_optimizer: bool,
    reset_lr_scheduler: bool,
    optimizer_overrides: dict[str, Any] | None,
    reset_meters: bool,
) -> dict[str, Any]:
    """Everything but the weights of the model, which are loaded."""
    if state.get("criterion") is not None and _has_parameters(trainer.criterion):
        trainer.criterion.load_state_dict(state["criterion"], strict=True)
    precision.restore_masters(trainer.optimizer, state["model"])
    extra_state = state["extra_state"]
    trainer.optimizer_history = list(state["optimizer_history"])
    if state.get("last_optimizer_state") is not None and not reset_optimizer:
        _restore_optimizer(trainer, state["last_optimizer_state"], filename, reset_lr_scheduler, optimizer_overrides)
    if trainer.ema is not None:
        trainer.ema.resume(extra_state, trainer.model)
    trainer.task.load_state_dict(state.get("task_state") or {})
    position = extra_state["train_iterator"]
    logger.info("Loaded checkpoint %s (epoch %d @ %d updates)", filename, position["epoch"], trainer.get_num_updates())
    trainer.restore_training_time(extra_state.get("previous_training_time", 0.0))
    trainer.lr_step_update()
    if "early_stop" in extra_state and not reset_optimizer and not reset_meters:
        trainer.early_stop = EarlyStop(**extra_state["early_stop"])
    if "metrics" in extra_state and not reset_meters and position["iterations_in_epoch"] > 0:
        metrics.load_state_dict(extra_state["metrics"])
        # The time between the two runs is nobody's training time.
        metrics.log_start_time("wall", priority=790, round=0)
    return extra_state


def _restore_optimizer(
    trainer: Trainer,
    optimizer_state: dict[str, Any],
    filename: str,
    reset_lr_scheduler: bool,
    overrides: dict[str, Any] | None,
) -> None:
    last = trainer.optimizer_history[-1]
    advice = "use the same one, or give --reset-optimizer to start with a fresh optimizer"
    if last["criterion_name"] != type(trainer.criterion).__name__:
        raise CheckpointError(
            f"{filename} was trained with the criterion {last['criterion_name']}, but this run uses "
            f"{type(trainer.criterion).__name__}; {advice}"
        )
    if not precision.accepts_state_of(trainer.optimizer, last["optimizer_name"]):
        raise CheckpointError(
            f"{filename} was trained with the optimizer {last['optimizer_name']}, but this run uses "
            f"{type(trainer.optimizer).__name__}; {advice}"
        )
    if not reset_lr_scheduler:
        trainer.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
    trainer.optimizer.load_state_dict(optimizer_state, overrides)
    trainer.set_num_updates(last["num_updates"])


def _has_parameters(module: Any) -> bool:
    return any(True for _ in module.parameters())


LAST = "checkpoint_last.pt"


def load_checkpoint(
    cfg: CheckpointConfig, trainer: Trainer, **iterator_args: Any
) -> tuple[dict[str, Any] | None, EpochBatchIterator]:
    """Restore ``trainer`` as the ``checkpoint`` section ``cfg`` says.

    Returns the checkpoint's ``extra_state`` (None without a checkpoint) and the iterator at the place where training
    goes on. ``iterator_args`` go to ``trainer.get_train_iterator``.
    """
    resets = {
        name: bool(getattr(cfg, f"reset_{name}")) for name in ("optimizer", "lr_scheduler", "meters", "dataloader")
    }
    if cfg.finetune_from_model is not None and any(resets.values()):
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer"
            " or reset_lr_scheduler or reset_meters or reset_dataloader"
        )
    path, finetune = _choose(cfg, trainer.checkpoint_suffix)
    if finetune:
        resets = dict.fromkeys(resets, True)
    extra_state = trainer.load_checkpoint(
        path,
        resets["optimizer"],
        resets["lr_scheduler"],
        literal_dict(cfg.optimizer_overrides, "--optimizer-overrides"),
        reset_meters=resets["meters"],
    )
    if extra_state is not None and not resets["optimizer"] and not resets["meters"]:
        best = extra_state.get("best")
        if best is not None:
            trainer.store.best = best
    if extra_state is None or resets["dataloader"]:
        return extra_state, trainer.get_train_iterator(epoch=1, load_dataset=True, **iterator_args)
    position = extra_state["train_iterator"]
    epoch_itr = trainer.get_train_iterator(epoch=position["epoch"], load_dataset=True, **iterator_args)
    epoch_itr.load_state_dict(position)
    return extra_state, epoch_itr


def _choose(cfg: CheckpointConfig, suffix: str) -> tuple[str, bool]:
    """The file to load, and whether it only gives the weights to start from."""
    if cfg.restore_file != LAST:
        if cfg.finetune_from_model:
            raise ConfigError(
                f"--finetune-from-model and --restore-file ({cfg.restore_file}) can not be specified together: keep one"
            )
        path = cfg.restore_file.replace(".pt", suffix + ".pt") if suffix else cfg.restore_file
        if not PathManager.exists(path):
            raise CheckpointError(
                f"--restore-file {path} does not exist; give the path of a checkpoint, or leave the option out to start "
                f"from {cfg.save_dir}/{LAST} when there is one and from scratch otherwise"
            )
        return path, False
    last = str(Path(cfg.save_dir) / f"checkpoint_last{suffix}.pt")
    if PathManager.exists(last):
        return last, False
    if cfg.continue_once is not None:
        if not PathManager.exists(cfg.continue_once):
            raise CheckpointError(f"--continue-once {cfg.continue_once} does not exist")
        return cfg.continue_once, False
    if cfg.finetune_from_model is not None:
        if not PathManager.exists(cfg.finetune_from_model):
            raise ConfigError(f"--finetune-from-model {cfg.finetune_from_model} does not exist")
        logger.info(
            "loading pretrained model from %s: optimizer, schedule, meters and data start anew", cfg.finetune_from_model
        )
        return cfg.finetune_from_model, True
    return last, False
