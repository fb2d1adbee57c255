"""What every learning-rate schedule offers to the trainer, and the legacy base for user code.

The trainer calls ``step_begin_epoch`` and then ``step_update`` when an epoch begins, ``step_update(n)`` after update
``n`` (it returns the rate of update ``n + 1``), and ``step`` with the validation loss when an epoch ends.
"""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.errors import ConfigError
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, rates


def single_rate(cfg: Any, schedule: str) -> float:
    """The configured rate, for schedules that take only one."""
    values = rates(cfg)
    if len(values) > 1:
        raise ConfigError(
            f"the {schedule} schedule takes one learning rate, but lr is {values}; "
            "rates per epoch need --lr-scheduler=fixed"
        )
    return values[0]


class FairseqLRScheduler:
    """Base class; subclasses compute the rate in :meth:`step_update` and set it with ``self.optimizer.set_lr``."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        if optimizer is not None and not isinstance(optimizer, FairseqOptimizer):
            raise ValueError(f"optimizer must be a FairseqOptimizer, but is {type(optimizer).__name__}")
        self.cfg = cfg
        self.optimizer: Any = optimizer
        self.best: float | None = None

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add options; only user code without a dataclass overrides this."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def step_begin_epoch(self, epoch: int) -> Any:
        """Set the rate for the beginning of ``epoch`` (from 1)."""

    def step(self, epoch: int, val_loss: float | None = None) -> Any:
        """Note the validation loss at the end of ``epoch``."""
        if val_loss is not None:
            self.best = val_loss if self.best is None else min(self.best, val_loss)

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate for the update after ``num_updates`` completed ones."""
        return self.optimizer.get_lr()

    def _set(self, lr: float) -> float:
        self.optimizer.set_lr(lr)
        return self.optimizer.get_lr()


class LegacyFairseqLRScheduler(FairseqLRScheduler):
    """Base of old user code that keeps its options in ``self.args``."""

    def __init__(self, args: Any, optimizer: Any) -> None:
        super().__init__(args, optimizer)
        self.args = args
