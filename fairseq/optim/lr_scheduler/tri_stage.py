"""Warm-up, hold, exponential decay (``--lr-scheduler tri_stage``)."""

from __future__ import annotations

import math
from typing import Any

from fairseq.dataclass.values import literal
from fairseq.errors import ConfigError
from fairseq.optim.configs import TriStageLRScheduleConfig
from fairseq.optim.lr_scheduler.build import register_lr_scheduler
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler, single_rate


@register_lr_scheduler("tri_stage", dataclass=TriStageLRScheduleConfig)
class TriStageLRSchedule(FairseqLRScheduler):
    """Park et al., SpecAugment (2019). With n completed updates and stages of W, H and D updates.

    n < W: from init_lr_scale * lr straight to lr; n < W + H: lr; n <= W + H + D, k updates into the decay:
    lr * final_lr_scale ^ (k / D); afterwards final_lr_scale * lr.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.peak_lr = single_rate(cfg, "tri_stage")
        self.init_lr = cfg.init_lr_scale * self.peak_lr
        self.final_lr = cfg.final_lr_scale * self.peak_lr
        if cfg.final_lr_scale <= 0:
            raise ConfigError(f"final_lr_scale must be positive, but is {cfg.final_lr_scale}")
        self.warmup_steps, self.hold_steps, self.decay_steps = _stages(cfg)
        if self.decay_steps <= 0:
            raise ConfigError(f"decay_steps must be positive for the tri_stage schedule, but is {self.decay_steps}")
        self.warmup_rate = (self.peak_lr - self.init_lr) / self.warmup_steps if self.warmup_steps else 0.0
        self.decay_factor = -math.log(cfg.final_lr_scale) / self.decay_steps
        self.lr = self.init_lr
        self._set(self.lr)

    def step_update(self, num_updates: int) -> float:
        decayed = num_updates - self.warmup_steps - self.hold_steps
        if num_updates < self.warmup_steps:
            self.lr = self.init_lr + self.warmup_rate * num_updates
        elif decayed < 0:
            self.lr = self.peak_lr
        elif decayed <= self.decay_steps:
            self.lr = self.peak_lr * math.exp(-self.decay_factor * decayed)
        else:
            self.lr = self.final_lr
        return self._set(self.lr)


def _stages(cfg: Any) -> tuple[int, int, int]:
    """The lengths of the three stages in updates."""
    ratio = cfg.phase_ratio
    if ratio is None:
        return cfg.warmup_steps, cfg.hold_steps, cfg.decay_steps
    try:
        first, second, third = map(float, literal(ratio, "phase_ratio") if isinstance(ratio, str) else ratio)
    except (TypeError, ValueError):
        raise ConfigError(f"phase_ratio must be three numbers such as (0.1, 0.4, 0.5), but is {ratio!r}") from None
    if not math.isclose(first + second + third, 1.0, abs_tol=1e-9):
        raise ConfigError(f"the three parts of phase_ratio must sum to 1, but are {first}, {second}, {third}")
    if not cfg.max_update > 0:
        raise ConfigError(f"phase_ratio needs a positive max_update, but it is {cfg.max_update}")
    return int(cfg.max_update * first), int(cfg.max_update * second), int(cfg.max_update * third)
