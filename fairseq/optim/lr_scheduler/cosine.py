"""Linear warm-up, then cosine annealing with warm restarts (``--lr-scheduler cosine``)."""

from __future__ import annotations

import math
from typing import Any

from fairseq.errors import ConfigError
from fairseq.optim.configs import CosineLRScheduleConfig
from fairseq.optim.lr_scheduler.build import register_lr_scheduler
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler, single_rate


@register_lr_scheduler("cosine", dataclass=CosineLRScheduleConfig)
class CosineLRSchedule(FairseqLRScheduler):
    """Loshchilov and Hutter, SGDR (2017). With w = warmup_updates and n completed updates.

    n < w: from warmup_init_lr (default: min_lr) straight to lr. Then period i of length T, of which t updates are
    over: lo + (hi - lo) / 2 * (1 + cos(pi * t / T)), where lo and hi are min_lr and lr times lr_shrink ^ i. Each period
    is t_mult times as long as the one before.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.max_lr = single_rate(cfg, "cosine")
        if self.max_lr <= cfg.min_lr:
            raise ConfigError(f"lr ({self.max_lr}) must be greater than min_lr ({cfg.min_lr}) for the cosine schedule")
        if cfg.t_mult < 1:
            raise ConfigError(f"t_mult must be at least 1, but is {cfg.t_mult}")
        self.warmup_updates = cfg.warmup_updates
        self.warmup_init_lr = cfg.min_lr if cfg.warmup_init_lr < 0 else cfg.warmup_init_lr
        self.period = cfg.lr_period_updates
        if self.period <= 0:
            if cfg.max_update <= cfg.warmup_updates:
                raise ConfigError(
                    f"max_update ({cfg.max_update}) must be greater than warmup_updates ({cfg.warmup_updates}) for the "
                    "cosine schedule; set it, or set lr_period_updates"
                )
            self.period = cfg.max_update - cfg.warmup_updates
        self.lr_step = (self.max_lr - self.warmup_init_lr) / self.warmup_updates if self.warmup_updates > 0 else 1.0
        self.lr = self.warmup_init_lr
        self._set(self.lr)

    def step_update(self, num_updates: int) -> float:
        if num_updates < self.warmup_updates:
            self.lr = self.warmup_init_lr + num_updates * self.lr_step
            return self._set(self.lr)
        i, t, length = self._position(num_updates - self.warmup_updates)
        shrink = self.cfg.lr_shrink**i
        low, high = self.cfg.min_lr * shrink, self.max_lr * shrink
        self.lr = low + 0.5 * (high - low) * (1 + math.cos(math.pi * t / length))
        return self._set(self.lr)

    def _position(self, updates: int) -> tuple[int, float, float]:
        """(number of the period, updates into it, its length) after ``updates`` updates of annealing."""
        t_mult = self.cfg.t_mult
        if t_mult == 1:
            i = math.floor(updates / self.period)
            return i, updates - self.period * i, self.period
        i = math.floor(math.log(1 - updates / self.period * (1 - t_mult), t_mult))
        return i, updates - (1 - t_mult**i) / (1 - t_mult) * self.period, t_mult**i * self.period
