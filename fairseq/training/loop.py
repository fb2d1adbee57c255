"""The epoch loop: iterate, log, validate, save, stop.

With it: one validation pass over every subset, the numbers that are printed beside the meters, and a trace of a few
updates (``--profile``), for TensorBoard's profiler page, Perfetto or ``chrome://tracing``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from fairseq.data.iterators import CountingIterator, EpochBatchIterator, GroupedIterator, GrowingGroups
from fairseq.dataclass.state import config_to_state
from fairseq.distributed import group as distributed
from fairseq.ending import INTERRUPTED
from fairseq.errors import ConfigError, FairseqError, TrainingError
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.registry import nearest
from fairseq.training import signals
from fairseq.training.batches import progress_of, subset_names

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(TRAIN_LOGGER)


def training_stats(stats: dict[str, Any]) -> dict[str, Any]:
    """``stats`` with ``wall``, the seconds since the run started, last."""
    stats["wall"] = round(metrics.get_meter("default", "wall").elapsed_time, 0)
    return stats


def validate(cfg: FairseqConfig, trainer: Trainer, epoch: int, subsets: list[str]) -> list[float]:
    """The value of ``best_checkpoint_metric`` on each of ``subsets``; the first one drives best, schedule and patience.

    Order and masks are those of epoch 1 every time, so that values are comparable over a run.
    """
    if cfg.dataset.fixed_validation_seed is not None:
        torch.manual_seed(cfg.dataset.fixed_validation_seed)
    trainer.begin_valid_epoch(epoch)
    values, metric = [], cfg.checkpoint.best_checkpoint_metric
    for position, subset in enumerate(subsets):
        logger.info('begin validation on "%s" subset', subset)
        stats = _validate_subset(cfg, trainer, epoch, subset, track_best=position == 0)
        first = distributed.get_data_parallel_rank() == 0  # the one that sees everything decides
        # A subset that decides nothing may have nothing to predict.
        wanted = first and (position == 0 or metric in stats)
        values.append(_metric(stats, metric, subset) if wanted else math.nan)
    return list(distributed.of_first(values))


def _validate_subset(cfg: FairseqConfig, trainer: Trainer, epoch: int, subset: str, track_best: bool) -> dict[str, Any]:
    batches = trainer.get_valid_iterator(subset).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    progress = progress_of(cfg, batches, epoch, f"valid on '{subset}' subset", trainer.run_name)
    most = cfg.dataset.max_valid_steps
    if most is not None and not cfg.dataset.exact_valid_steps:
        most += 1  # as the original evaluates, so that validation values stay comparable
    # A new root, so that nothing of the pass leaks into the training meters.
    with metrics.aggregate(new_root=True, collect=True) as meters:
        for row, sample in enumerate(progress):
            first = row * distributed.get_data_parallel_world_size()
            if most is not None and first >= most:
                break
            signals.raise_dropped_interrupt()
            if trainer.peers.agreed("interrupted"):
                raise signals.InterruptedPass
            # The limit is one on the batches of all processes: the last row may have some for a few of them only.
            trainer.valid_step(sample if most is None or first + distributed.get_data_parallel_rank() < most else None)
    stats = meters.get_smoothed_values()
    stats["num_updates"] = trainer.get_num_updates()
    metric, best = cfg.checkpoint.best_checkpoint_metric, trainer.store.best
    if track_best and best is not None and metric in stats:
        better = max if cfg.checkpoint.maximize_best_checkpoint_metric else min
        stats[f"best_{metric}"] = better(best, float(stats[metric]))
    if hasattr(trainer.task, "post_validate"):  # a plugin's own evaluation of the model, which may add to the numbers
        trainer.task.post_validate(trainer.get_model(), stats, meters)
    progress.print(stats, tag=subset, step=trainer.get_num_updates())
    return stats


def _metric(stats: dict[str, Any], name: str, subset: str) -> float:
    if name not in stats and name in ("loss", "nll_loss", "ppl"):
        raise TrainingError(
            f"no batch of {subset!r} has anything to predict, so that it has no {name}: raise --mask-prob, validate on more "
            "data, or give --disable-validation"
        )
    if name not in stats:
        known = [key for key in stats if not key.startswith("best_")]
        raise ConfigError(
            f"--best-checkpoint-metric {name!r} is not among the validation statistics{nearest(name, known) or '.'} "
            f"Known: {', '.join(known)}"
        )
    return float(stats[name])


SKIPPED = 4
"""Updates before the trace: libraries load, memory grows, the learning rate leaves zero."""
WARM_UP = 1
"""Updates during which the profiler runs and its records are thrown away."""
RECORDED = 3


def do_nothing() -> None:
    pass


@contextmanager
def traced_updates(cfg: FairseqConfig, cuda: bool) -> Iterator[Callable[[], None]]:
    """Call what this gives after every update; with ``common.profile`` a few of them are recorded and the file is logged.

    The trace is written below ``tensorboard_logdir`` if that is set, otherwise below ``save_dir``, in ``profile``.
    """
    if not cfg.common.profile:
        yield do_nothing
        return
    directory = Path(cfg.common.tensorboard_logdir or cfg.checkpoint.save_dir) / "profile"
    write = tensorboard_trace_handler(str(directory))

    def ready(finished: profile) -> None:
        write(finished)
        logger.info("profile: a trace of %d updates is in %s (tensorboard, or ui.perfetto.dev)", RECORDED, directory)
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        logger.info("profile:\n%s", finished.key_averages().table(sort_by=order, row_limit=20))

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARM_UP, active=RECORDED, repeat=1)
    needed = SKIPPED + WARM_UP + RECORDED
    logger.info("profile: recording updates %d to %d of this run", needed - RECORDED + 1, needed)
    with profile(activities=activities, schedule=plan, on_trace_ready=ready, record_shapes=True) as recorder:
        yield recorder.step
    if recorder.step_num < needed:
        logger.warning(
            "profile: there is no trace: the run ended after %d updates, and %d are needed", recorder.step_num, needed
        )


def train_epochs(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator) -> float | None:
    """Train until a stop rule holds; returns the last validation value, or None without one."""
    last_epoch = cfg.optimization.max_epoch or math.inf
    lr = trainer.get_lr()
    value: float | None = None
    with traced_updates(cfg, trainer.cuda) as update_done:
        while epoch_itr.next_epoch_idx <= last_epoch:
            if lr <= cfg.optimization.stop_min_lr:
                logger.info(
                    "stopping training because current learning rate (%s) is smaller than or equal to minimum learning rate "
                    "(--stop-min-lr=%s)",
                    lr,
                    cfg.optimization.stop_min_lr,
                )
                break
            values, should_stop = train_epoch(cfg, trainer, epoch_itr, update_done)
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
    cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator, update_done: Callable[[], None] = do_nothing
) -> tuple[list[float], bool]:
    """Train (the rest of) one epoch; returns the values of the last validation and whether to stop.

    ``update_done`` is called after every update.
    """
    batches = epoch_itr.next_epoch_itr(
        fix_batches_to_gpus=cfg.distributed_training.fix_batches_to_gpus,
        shuffle=epoch_itr.next_epoch_idx > cfg.dataset.curriculum,
    )
    groups = update_groups(cfg, trainer, epoch_itr.epoch, batches)
    progress = progress_of(cfg, groups, epoch_itr.epoch, run_name=trainer.run_name)
    progress.update_config(config_to_state(cfg))
    trainer.begin_epoch(epoch_itr.epoch)
    values: list[float] = []
    should_stop = False
    logger.info("Start iterating over samples")
    for samples in rescuing(progress, trainer, epoch_itr):
        with metrics.aggregate("train_inner"):
            updated = trainer.train_step(samples) is not None
        update_done()
        signals.raise_dropped_interrupt()
        num_updates = trainer.get_num_updates()
        if updated and num_updates % cfg.common.log_interval == 0:
            progress.log(
                training_stats(metrics.get_smoothed_values("train_inner")), tag="train_inner", step=num_updates
            )
            metrics.reset_meters("train_inner")
        end_of_epoch = not groups.has_next()
        if trainer.peers.agreed("interrupted"):
            save_and_leave(trainer, epoch_itr)
        if updated or end_of_epoch:  # a skipped update changes nothing worth saving again
            values, should_stop = validate_and_save(cfg, trainer, epoch_itr, end_of_epoch)
        if should_stop:
            break
    logger.info("end of epoch %d (average epoch stats below)", epoch_itr.epoch)
    stats = training_stats(metrics.get_smoothed_values("train"))
    progress.print(stats, tag="train", step=trainer.get_num_updates())
    metrics.reset_meters("train")
    return values, should_stop


def rescuing(batches: Iterable[Any], trainer: Trainer, epoch_itr: EpochBatchIterator) -> Iterator[Any]:
    """``batches``; where they cannot be read any more, the updates that were made are saved before the error goes on."""
    iterator, first = iter(batches), trainer.get_num_updates()
    while True:
        position = epoch_itr.state_dict()
        try:
            samples = next(iterator)
        except StopIteration:
            return
        except FairseqError:
            if trainer.get_num_updates() > first and distributed.get_global_world_size() == 1:
                trainer.save_checkpoint(epoch_itr, None, forced=True, position=position)
                trainer.store.wait()
            raise
        yield samples


def update_groups(cfg: FairseqConfig, trainer: Trainer, epoch: int, batches: CountingIterator) -> CountingIterator:
    """``batches`` in lists, one for each update: update_freq of them, or fewer in the beginning (batch_ramp_updates).

    An update reads update_freq batches per process, or ``batches_per_update`` of all processes. While it grows it reads a
    fraction of those of all processes, so that its batches depend on their number alone.
    """
    schedule, ramp = cfg.optimization.update_freq, cfg.optimization.batch_ramp_updates
    whole, together = cfg.optimization.skip_remainder_batch, cfg.optimization.batches_per_update
    update_freq = schedule[min(epoch, len(schedule)) - 1]
    most = together or update_freq * distributed.get_data_parallel_world_size()

    def size(updates: int) -> int:
        return max(1, math.ceil(most * min(updates / ramp, 1.0))) if ramp else most

    if not (ramp or together):
        groups: CountingIterator = GroupedIterator(batches, update_freq, skip_remainder_batch=whole)
    else:
        groups = GrowingGroups(batches, size, trainer.get_num_updates, skip_remainder_batch=whole)
    if not groups.has_next():
        wanted = f"batches_per_update={together}" if together else f"update_freq={update_freq}"
        raise ConfigError(
            f"an epoch has {batches.end} batches, too few for an update of {wanted}, and "
            "--skip-remainder-batch drops them: lower --update-freq or the batch size"
        )
    return groups


def validate_and_save(
    cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator, end_of_epoch: bool
) -> tuple[list[float], bool]:
    """Validate and save when they are due after an update; returns validation values ([] if not due) and whether to stop."""
    num_updates = trainer.get_num_updates()
    should_stop = _reached_limit(cfg, trainer, num_updates)
    if end_of_epoch or should_stop:
        _require_targets(trainer)
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


def _require_targets(trainer: Trainer) -> None:
    """Raise TrainingError if no update had anything to predict; of a resumed run that is not known."""
    if 0 < trainer.own_updates == trainer.get_num_updates() and float(trainer.predicted) == 0:
        raise TrainingError(
            f"none of the {trainer.get_num_updates()} updates had anything to predict, so that nothing is learned: raise "
            "--mask-prob, or look at the targets of the data"
        )


def _validate(cfg: FairseqConfig, trainer: Trainer, epoch_itr: EpochBatchIterator) -> list[float]:
    try:
        return validate(cfg, trainer, epoch_itr.epoch, trainer.task.validation_subsets(subset_names(cfg)))
    except signals.InterruptedPass:
        save_and_leave(trainer, epoch_itr)
    except FairseqError:
        # A mistake in the validation data or settings must not cost the updates that were made.
        if not trainer.peers.shares_passes:  # it may be one process alone that has found it
            trainer.save_checkpoint(epoch_itr, None)
            trainer.store.wait()
        raise


def save_and_leave(trainer: Trainer, epoch_itr: EpochBatchIterator) -> NoReturn:
    """Save because of a signal, and end this process once the first one has written. A validation is not made up for."""
    logger.info(
        "%s: saving after %d updates, then ending with status %d; the same command goes on from there",
        signals.received() or "a signal to another process",
        trainer.get_num_updates(),
        INTERRUPTED,
    )
    trainer.save_checkpoint(epoch_itr, None, forced=True)
    trainer.store.wait()
    distributed.gather(None)
    raise SystemExit(INTERRUPTED)


def _hits(num_updates: int, interval: int) -> bool:
    return interval > 0 and num_updates > 0 and num_updates % interval == 0


def _reached_limit(cfg: FairseqConfig, trainer: Trainer, num_updates: int) -> bool:
    if cfg.optimization.max_update and num_updates >= cfg.optimization.max_update:
        logger.info(
            "Stopping training due to num_updates: %d >= max_update: %d", num_updates, cfg.optimization.max_update
        )
        return True
    if trainer.peers.agreed("time_up"):
        hours = trainer.cumulative_training_time() / 3600
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
