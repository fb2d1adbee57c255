"""One learning rate per epoch (``--lr-scheduler fixed``)."""

from __future__ import annotations

from typing import Any

from fairseq.optim.configs import FixedLRScheduleConfig
from fairseq.optim.fairseq_optimizer import rates
from fairseq.optim.lr_scheduler.build import register_lr_scheduler
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler


@register_lr_scheduler("fixed", dataclass=FixedLRScheduleConfig)
class FixedLRSchedule(FairseqLRScheduler):
    """With w = warmup_updates and n completed updates: base(epoch) * (n + 1) / w while n < w, then base(epoch).

    base(epoch) is the epoch's entry of lr (the last one repeats); from force_anneal on, the last entry times
    lr_shrink ^ (epoch + 1 - force_anneal).
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.lr = rates(cfg)[0]
        self.warmup_factor = 1.0 / cfg.warmup_updates if cfg.warmup_updates > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lr = state_dict.get("lr", self.lr)

    def get_next_lr(self, epoch: int) -> float:
        values = rates(self.cfg)
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return values[min(epoch - 1, len(values) - 1)]
        return values[-1] * self.cfg.lr_shrink ** (epoch + 1 - self.cfg.force_anneal)

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = self.get_next_lr(epoch)
        return self._set(self.warmup_factor * self.lr)

    def step_update(self, num_updates: int) -> float:
        if num_updates < self.cfg.warmup_updates:
            self.warmup_factor = (num_updates + 1) / self.cfg.warmup_updates
            return self._set(self.warmup_factor * self.lr)
        return self._set(self.lr)
