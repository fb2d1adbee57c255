"""Linear warm-up, then decay with the inverse square root (``--lr-scheduler inverse_sqrt``)."""

from __future__ import annotations

from typing import Any

from fairseq.errors import ConfigError
from fairseq.optim.configs import InverseSquareRootLRScheduleConfig
from fairseq.optim.lr_scheduler.build import register_lr_scheduler
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler, single_rate


@register_lr_scheduler("inverse_sqrt", dataclass=InverseSquareRootLRScheduleConfig)
class InverseSquareRootSchedule(FairseqLRScheduler):
    """Vaswani et al. (2017), section 5.3. With w = warmup_updates and n completed updates.

    n < w: from warmup_init_lr (default 0) straight to lr; then lr * sqrt(w) / sqrt(n).
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        peak = single_rate(cfg, "inverse_sqrt")
        if cfg.warmup_updates <= 0:
            raise ConfigError(
                f"warmup_updates must be positive for the inverse_sqrt schedule, but is {cfg.warmup_updates}"
            )
        self.warmup_init_lr = 0.0 if cfg.warmup_init_lr < 0 else cfg.warmup_init_lr
        self.lr_step = (peak - self.warmup_init_lr) / cfg.warmup_updates
        self.decay_factor = peak * cfg.warmup_updates**0.5
        self.lr = self.warmup_init_lr
        self._set(self.lr)

    def step_update(self, num_updates: int) -> float:
        if num_updates < self.cfg.warmup_updates:
            self.lr = self.warmup_init_lr + num_updates * self.lr_step
        else:
            self.lr = self.decay_factor * num_updates**-0.5
        return self._set(self.lr)
