"""Linear warm-up, then polynomial decay (``--lr-scheduler polynomial_decay``)."""

from __future__ import annotations

from typing import Any

from fairseq.errors import ConfigError
from fairseq.optim.configs import PolynomialDecayLRScheduleConfig
from fairseq.optim.fairseq_optimizer import rates
from fairseq.optim.lr_scheduler.build import register_lr_scheduler
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler


@register_lr_scheduler("polynomial_decay", dataclass=PolynomialDecayLRScheduleConfig)
class PolynomialDecayLRSchedule(FairseqLRScheduler):
    """With w = warmup_updates, N = total_num_update and n completed updates.

    n <= w: lr * n / w, so the very first update has rate 0; n >= N: end_learning_rate; between:
    (lr - end) * (1 - (n - w) / (N - w)) ^ power + end.

    With several rates, epoch e uses entry e counted from 0 (one later than ``fixed``), as the original does.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        if not (cfg.total_num_update or 0) > 0:
            raise ConfigError(
                f"total_num_update is {cfg.total_num_update}, but polynomial_decay needs a positive number of updates; "
                "set it, or set max_update"
            )
        self.lr = rates(cfg)[0]
        self.warmup_factor = 1.0 / cfg.warmup_updates if cfg.warmup_updates > 0 else 1.0
        self.end_learning_rate = cfg.end_learning_rate
        self.total_num_update = cfg.total_num_update
        self.power = cfg.power
        self._set(self.warmup_factor * self.lr)

    def get_next_lr(self, epoch: int) -> float:
        values = rates(self.cfg)
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return values[min(epoch, len(values) - 1)]
        return self.optimizer.get_lr()

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = self.get_next_lr(epoch)
        return self._set(self.warmup_factor * self.lr)

    def step_update(self, num_updates: int) -> float:
        warmup = self.cfg.warmup_updates
        if warmup > 0 and num_updates <= warmup:
            self.warmup_factor = num_updates / warmup
            return self._set(self.warmup_factor * self.lr)
        if num_updates >= self.total_num_update:
            return self._set(self.end_learning_rate)
        remaining = 1 - (num_updates - warmup) / (self.total_num_update - warmup)
        return self._set((self.lr - self.end_learning_rate) * remaining**self.power + self.end_learning_rate)
