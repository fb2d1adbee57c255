"""What a checkpoint takes from a trainer, and what a trainer takes back from it."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.checkpoint import read
from fairseq.checkpoint.schema import build_state
from fairseq.checkpoint.store import atomic_save
from fairseq.dataclass.state import config_to_state
from fairseq.errors import CheckpointError
from fairseq.file_io import PathManager
from fairseq.logging import metrics

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(__name__)


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


def collect(trainer: Trainer) -> dict[str, Any]:
    """The checkpoint of ``trainer``, without the position in the data."""
    weights = trainer.model.state_dict()
    masters = trainer.optimizer.master_weights()
    if masters is not None:  # reduced precision: the file gets the float32 weights, so that nothing is lost
        weights = _replace_shared(weights, masters)
    history = {
        "criterion_name": type(trainer.criterion).__name__,
        "optimizer_name": type(trainer.optimizer).__name__,
        "lr_scheduler_state": trainer.lr_scheduler.state_dict(),
        "num_updates": trainer.get_num_updates(),
    }
    extra: dict[str, Any] = {
        "metrics": metrics.state_dict(),
        "previous_training_time": trainer.cumulative_training_time(),
    }
    if trainer.ema is not None:
        extra["ema"] = trainer.ema.get_model().state_dict()
        if trainer.cfg.ema.ema_fp32:
            extra["ema_fp32_params"] = trainer.ema.fp32_params
    keep_optimizer = not trainer.cfg.checkpoint.no_save_optimizer_state
    return build_state(
        cfg=config_to_state(trainer.cfg),
        model=weights,
        criterion=trainer.criterion.state_dict() if any(True for _ in trainer.criterion.parameters()) else None,
        optimizer_history=[*trainer.optimizer_history, history],
        task_state=trainer.task.state_dict(),
        extra_state=extra,
        last_optimizer_state=trainer.optimizer.state_dict() if keep_optimizer else None,
    )


def _replace_shared(weights: dict[str, Any], masters: dict[str, Any]) -> dict[str, Any]:
    """``weights`` with every entry that a master weight stands for replaced by it, shared ones included."""
    by_storage = {weights[name].data_ptr(): master for name, master in masters.items() if name in weights}
    replaced = {name: by_storage.get(tensor.data_ptr(), tensor) for name, tensor in weights.items()}
    return type(weights)(replaced)


def save(trainer: Trainer, epoch_itr: EpochBatchIterator, val_loss: float | None) -> Path | None:
    """Write the checkpoint files that are due after this update."""
    cfg = trainer.cfg.checkpoint
    if cfg.no_save or not trainer.is_data_parallel_master:
        return None
    started = time.perf_counter()
    epoch, end_of_epoch, num_updates = epoch_itr.epoch, epoch_itr.end_of_epoch(), trainer.get_num_updates()
    trainer.store.note(val_loss)
    if not trainer.store.names(epoch, num_updates, end_of_epoch, val_loss):
        return None
    state = trainer.state_dict()
    extra = state["extra_state"]
    extra["train_iterator"] = epoch_itr.state_dict()
    extra["val_loss"] = val_loss
    if trainer.store.best is not None:
        extra["best"] = trainer.store.best
    if trainer.early_stop.runs:
        extra["early_stop"] = asdict(trainer.early_stop)
    path = trainer.store.save(state, epoch, num_updates, end_of_epoch, val_loss)
    trainer.store.prune(end_of_epoch)
    logger.info(
        "Saved checkpoint %s (epoch %d @ %d updates, score %s) (writing took %.3f seconds)",
        path,
        epoch,
        num_updates,
        val_loss,
        time.perf_counter() - started,
    )
    return path


def save_crash(trainer: Trainer, path: Path) -> None:
    """Best-effort dump of a diverged run for inspection; a failure here must not hide the real error."""
    try:
        atomic_save(trainer.state_dict(), path)
        logger.info("saved the state of the failed update as %s", path)
    except (CheckpointError, OSError) as error:
        logger.warning("could not save %s: %s", path, error)


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
    state = read(filename)
    _restore_weights(trainer, state, filename)
    extra_state = state.get("extra_state") or {}
    optimizer_state = state.get("last_optimizer_state")
    trainer.optimizer_history = list(state.get("optimizer_history") or [])
    if optimizer_state is not None and not reset_optimizer:
        _restore_optimizer(trainer, optimizer_state, filename, reset_lr_scheduler, optimizer_overrides)
    _restore_ema(trainer, extra_state)
    trainer.task.load_state_dict(state.get("task_state") or {})
    position = extra_state.get("train_iterator", {"epoch": 1, "iterations_in_epoch": 0})
    logger.info("Loaded checkpoint %s (epoch %d @ %d updates)", filename, position["epoch"], trainer.get_num_updates())
    trainer.restore_training_time(extra_state.get("previous_training_time", 0.0))
    trainer.lr_step_update()
    if "early_stop" in extra_state and not reset_optimizer and not reset_meters:
        trainer.early_stop = EarlyStop(**extra_state["early_stop"])
    if "metrics" in extra_state and not reset_meters and position["iterations_in_epoch"] > 0:
        metrics.load_state_dict(extra_state["metrics"])
        _forget_clock_readings()
    return extra_state


def _restore_weights(trainer: Trainer, state: dict[str, Any], filename: str) -> None:
    weights = state["model"]
    try:
        trainer.model.load_state_dict(weights, strict=True, model_cfg=trainer.cfg.model)
        if state.get("criterion") is not None and any(True for _ in trainer.criterion.parameters()):
            trainer.criterion.load_state_dict(state["criterion"], strict=True)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{filename} does not fit the model: {error}; give the options (architecture, sizes, dictionary) that it was "
            "trained with"
        ) from error
    trainer.optimizer.load_master_weights(weights)


def _restore_optimizer(
    trainer: Trainer,
    optimizer_state: dict[str, Any],
    filename: str,
    reset_lr_scheduler: bool,
    overrides: dict[str, Any] | None,
) -> None:
    last = trainer.optimizer_history[-1]
    for kind, mine in (("criterion", trainer.criterion), ("optimizer", trainer.optimizer)):
        theirs = last.get(f"{kind}_name")
        if theirs is not None and theirs != type(mine).__name__:
            raise CheckpointError(
                f"{filename} was trained with the {kind} {theirs}, but this run uses {type(mine).__name__}; "
                f"use the same one, or give --reset-optimizer to start with a fresh optimizer"
            )
    if not reset_lr_scheduler:
        trainer.lr_scheduler.load_state_dict(last["lr_scheduler_state"])
    trainer.optimizer.load_state_dict(optimizer_state, overrides)
    trainer.set_num_updates(last["num_updates"])


def _restore_ema(trainer: Trainer, extra_state: dict[str, Any]) -> None:
    if trainer.ema is None:
        return
    if "ema" in extra_state:
        trainer.ema.restore(extra_state["ema"], build_fp32_params=trainer.cfg.ema.ema_fp32)
    else:
        logger.info("the checkpoint has no moving average; it starts from the restored weights")
        trainer.ema.restore(trainer.model.state_dict(), build_fp32_params=trainer.cfg.ema.ema_fp32)


def _forget_clock_readings() -> None:
    """Restart the clocks: the time between the two runs is nobody's training time."""
    for meters in metrics.get_active_aggregators():
        for meter in meters.values():
            if hasattr(meter, "reset") and type(meter).__name__ == "TimeMeter":
                meter.reset()
    metrics.log_start_time("wall", priority=790, round=0)
