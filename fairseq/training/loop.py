"""The epoch loop: iterate, log, validate, save, stop."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from fairseq.data.iterators import EpochBatchIterator, GroupedIterator
from fairseq.dataclass.state import config_to_state
from fairseq.errors import ConfigError, FairseqError
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.training.batches import progress_of, subset_names
from fairseq.training.profiling import NOTHING, Stepping, traced_updates
from fairseq.training.stats import training_stats
from fairseq.training.validation import validate

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(TRAIN_LOGGER)


def train_epochs(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator) -> float | None:
    """Train until a stop rule holds; returns the last validation value, or None without one."""
    with traced_updates(cfg, trainer.cuda) as trace:
        return _train_epochs(cfg, trainer, epoch_itr, trace)


def _train_epochs(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator, trace: Stepping) -> float | None:
    last_epoch = cfg.optimization.max_epoch or math.inf
    lr = trainer.get_lr()
    value: float | None = None
    while epoch_itr.next_epoch_idx <= last_epoch:
        if lr <= cfg.optimization.stop_min_lr:
            logger.info(
                "stopping training because current learning rate (%s) is smaller than or equal to minimum learning rate "
                "(--stop-min-lr=%s)",
                lr,
                cfg.optimization.stop_min_lr,
            )
            break
        values, should_stop = train_epoch(cfg, trainer, epoch_itr, trace)
        value = values[0] if values else value
        if should_stop:
            break
        lr = trainer.lr_step(epoch_itr.epoch, values[0] if values else None)
        sharded = trainer.task.has_sharded_data("train")
        epoch_itr = trainer.get_train_iterator(
            epoch_itr.next_epoch_idx, load_dataset=sharded, disable_iterator_cache=sharded
        )
    return value


@metrics.aggregate("train")
def train_epoch(
    cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator, trace: Stepping = NOTHING
) -> tuple[list[float], bool]:
    """Train (the rest of) one epoch; returns the values of the last validation and whether to stop.

    ``trace`` is told when an update is over.
    """
    batches = epoch_itr.next_epoch_itr(
        fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus,
        shuffle=epoch_itr.next_epoch_idx > cfg.dataset.curriculum,
    )
    schedule = cfg.optimization.update_freq
    update_freq = schedule[min(epoch_itr.epoch, len(schedule)) - 1]
    groups = GroupedIterator(batches, update_freq, skip_remainder_batch=cfg.optimization.skip_remainder_batch)
    if groups.total == 0:
        raise ConfigError(
            f"an epoch has {len(epoch_itr)} batches, too few for an update of update_freq={update_freq}, and "
            "--skip-remainder-batch drops them: lower --update-freq or the batch size"
        )
    progress = progress_of(cfg, groups, epoch_itr.epoch, run_name=trainer.run_name)
    progress.update_config(config_to_state(cfg))
    trainer.begin_epoch(epoch_itr.epoch)
    values: list[float] = []
    should_stop = False
    logger.info("Start iterating over samples")
    for samples in progress:
        with metrics.aggregate("train_inner"):
            updated = trainer.train_step(samples) is not None
        trace.step()
        num_updates = trainer.get_num_updates()
        if updated and num_updates % cfg.common.log_interval == 0:
            progress.log(
                training_stats(metrics.get_smoothed_values("train_inner")), tag="train_inner", step=num_updates
            )
            metrics.reset_meters("train_inner")
        end_of_epoch = not groups.has_next()
        if updated or end_of_epoch:  # a skipped update changes nothing worth saving again
            values, should_stop = validate_and_save(cfg, trainer, epoch_itr, end_of_epoch)
        if should_stop:
            break
    logger.info("end of epoch %d (average epoch stats below)", epoch_itr.epoch)
    stats = training_stats(metrics.get_smoothed_values("train"))
    progress.print(stats, tag="train", step=trainer.get_num_updates())
    metrics.reset_meters("train")
    return values, should_stop


def validate_and_save(
    cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator, end_of_epoch: bool
) -> tuple[list[float], bool]:
    """Validate and save when they are due after an update; returns validation values ([] if not due) and whether to stop."""
    num_updates = trainer.get_num_updates()
    should_stop = _reached_limit(cfg, trainer, num_updates)
    every = cfg.checkpoint.save_interval_updates
    do_save = (
        (end_of_epoch and epoch_itr.epoch % cfg.checkpoint.save_interval == 0)
        or should_stop
        or (_hits(num_updates, every) and num_updates >= cfg.dataset.validate_after_updates)
    )
    do_validate = (
        (not end_of_epoch and do_save)
        or (end_of_epoch and epoch_itr.epoch % cfg.dataset.validate_interval == 0)
        or should_stop
        or _hits(num_updates, cfg.dataset.validate_interval_updates)
    ) and not cfg.dataset.disable_validation
    do_validate = do_validate and num_updates >= cfg.dataset.validate_after_updates
    values = _validate(cfg, trainer, epoch_itr) if do_validate else []
    should_stop |= _out_of_patience(cfg, trainer, values[0] if values else None)
    if do_save or should_stop:
        trainer.save_checkpoint(epoch_itr, values[0] if values else None)
    return values, should_stop


def _validate(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator) -> list[float]:
    try:
        return validate(cfg, trainer, epoch_itr.epoch, subset_names(cfg))
    except FairseqError:
        # A mistake in the validation data or settings must not cost the updates that were made.
        trainer.save_checkpoint(epoch_itr, None)
        trainer.store.wait()
        raise


def _hits(num_updates: int, interval: int) -> bool:
    return interval > 0 and num_updates > 0 and num_updates % interval == 0


def _reached_limit(cfg: FairseqConfig, trainer: Trainer, num_updates: int) -> bool:
    if cfg.optimization.max_update and num_updates >= cfg.optimization.max_update:
        logger.info(
            "Stopping training due to num_updates: %d >= max_update: %d", num_updates, cfg.optimization.max_update
        )
        return True
    hours = trainer.cumulative_training_time() / 3600
    if cfg.optimization.stop_time_hours > 0 and hours > cfg.optimization.stop_time_hours:
        logger.info(
            "Stopping training due to cumulative_training_time: %s > stop_time_hours: %s hour(s)",
            hours,
            cfg.optimization.stop_time_hours,
        )
        return True
    return False


def _out_of_patience(cfg: FairseqConfig, trainer: Trainer, value: float | None) -> bool:
    if value is None or cfg.checkpoint.patience <= 0:
        return False
    if trainer.early_stop.update(value, cfg.checkpoint.maximize_best_checkpoint_metric) >= cfg.checkpoint.patience:
        logger.info("early stop since valid performance hasn't improved for last %d runs", cfg.checkpoint.patience)
        return True
    return False
