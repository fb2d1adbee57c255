"""One validation pass over every subset."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.registry import nearest
from fairseq.training.batches import progress_of
from fairseq.training.stats import validation_stats

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(TRAIN_LOGGER)


def validate(cfg: FairseqConfig, trainer: Trainer, epoch: int, subsets: list[str]) -> list[float]:
    """The value of ``best_checkpoint_metric`` on each of ``subsets``; the first one drives best, schedule and patience.

    Order and masks are those of epoch 1 every time, so that values are comparable over a run.
    """
    if cfg.dataset.fixed_validation_seed is not None:
        torch.manual_seed(cfg.dataset.fixed_validation_seed)
    trainer.begin_valid_epoch(epoch)
    values = []
    for position, subset in enumerate(subsets):
        logger.info('begin validation on "%s" subset', subset)
        stats = _validate_subset(cfg, trainer, epoch, subset, track_best=position == 0)
        values.append(_metric(stats, cfg.checkpoint.best_checkpoint_metric))
    return values


def _validate_subset(cfg: FairseqConfig, trainer: Trainer, epoch: int, subset: str, track_best: bool) -> dict[str, Any]:
    batches = trainer.get_valid_iterator(subset).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    progress = progress_of(cfg, batches, epoch, f"valid on '{subset}' subset", trainer.run_name)
    most = cfg.dataset.max_valid_steps
    if most is not None and not cfg.dataset.exact_valid_steps:
        most += 1  # as the original evaluates, so that validation values stay comparable
    # A new root, so that nothing of the pass leaks into the training meters.
    with metrics.aggregate(new_root=True, collect=True) as meters:
        for i, sample in enumerate(progress):
            if most is not None and i >= most:
                break
            trainer.valid_step(sample)
    stats = validation_stats(
        meters.get_smoothed_values(),
        trainer.get_num_updates(),
        cfg.checkpoint.best_checkpoint_metric,
        trainer.store.best if track_best else None,
        cfg.checkpoint.maximize_best_checkpoint_metric,
    )
    progress.print(stats, tag=subset, step=trainer.get_num_updates())
    return stats


def _metric(stats: dict[str, Any], name: str) -> float:
    if name not in stats:
        known = [key for key in stats if not key.startswith("best_")]
        raise ConfigError(
            f"--best-checkpoint-metric {name!r} is not among the validation statistics{nearest(name, known) or '.'} "
            f"Known: {', '.join(known)}"
        )
    return float(stats[name])
