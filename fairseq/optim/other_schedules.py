"""Schedules that follow something else than the number of updates alone: the validation loss, a table, the optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from fairseq.dataclass.base import literal_dict
from fairseq.errors import ConfigError
from fairseq.optim.configs import (
    ManualScheduleConfig,
    PassThroughScheduleConfig,
    ReduceLROnPlateauLRScheduleConfig,
)
from fairseq.optim.fairseq_optimizer import learning_rates
from fairseq.optim.lr_scheduler import FairseqLRScheduler, StoresRate, register_lr_scheduler, single_lr

#: Besides the original's two, so that a resumed run goes on exactly.
_PLATEAU_STATE = ("num_bad_epochs", "cooldown_counter")


@register_lr_scheduler("reduce_lr_on_plateau", dataclass=ReduceLROnPlateauLRScheduleConfig)
class ReduceLROnPlateauLRSchedule(FairseqLRScheduler):
    """torch's ReduceLROnPlateau on the validation loss at the end of each epoch, after an optional linear warm-up.

    With w = warmup_updates and n completed updates: n <= w: from warmup_init_lr (default 0) straight to lr. Epochs that
    end during the warm-up, or without validation, do not count.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.peak_lr = single_lr(cfg, "reduce_lr_on_plateau")
        self.plateau = ReduceLROnPlateau(
            optimizer.optimizer,
            mode="max" if cfg.maximize_best_checkpoint_metric else "min",
            factor=cfg.lr_shrink,
            patience=cfg.lr_patience,
            threshold=cfg.lr_threshold,
        )
        self.warmup_init_lr = max(0.0, cfg.warmup_init_lr)
        self.warmed_up = cfg.warmup_updates <= 0
        self._set(self.peak_lr if self.warmed_up else self.warmup_init_lr)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self.plateau, name) for name in ("best", "last_epoch", *_PLATEAU_STATE)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.best = state_dict["best"]
        for name in ("last_epoch", *_PLATEAU_STATE):
            setattr(self.plateau, name, state_dict.get(name, getattr(self.plateau, name)))

    def step(self, epoch: int, val_loss: float | None = None) -> float:
        if val_loss is not None and self.warmed_up:
            self.plateau.step(val_loss)
        else:
            self.plateau.last_epoch = epoch
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        warmup = self.cfg.warmup_updates
        if warmup > 0:
            self.warmed_up = num_updates > warmup
            if not self.warmed_up:
                return self._set(self.warmup_init_lr + num_updates * ((self.peak_lr - self.warmup_init_lr) / warmup))
        return self.optimizer.get_lr()


@register_lr_scheduler("manual", dataclass=ManualScheduleConfig)
class ManualSchedule(StoresRate):
    """Learning rates from two tables: by epoch (from 1), and by completed updates, which come before those by epoch.

    An entry holds until the next one. Before the first entries the learning rate is that of epoch 1, of update 1, or lr.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.epoch2lr, self.update2lr = (read_table(getattr(cfg, key), key) for key in ("epoch2lr", "update2lr"))
        self.lr = self.epoch2lr.get(1, self.update2lr.get(1, learning_rates(cfg)[0]))
        self._set(self.lr)

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = self._latest(self.epoch2lr, epoch)
        return self._set(self.lr)

    def step_update(self, num_updates: int) -> float:
        return self._set(self._latest(self.update2lr, num_updates))

    def _latest(self, table: dict[int, float], number: int) -> float:
        passed = [key for key in table if key <= number]
        return table[max(passed)] if passed else self.optimizer.get_lr()


def read_table(text: Any, name: str) -> dict[int, float]:
    """``{"1": 0.1, "2-4": 0.05, "5,6": 0.01}`` by single numbers. Raises ConfigError that names the option ``name``."""
    table: dict[int, float] = {}
    for key, value in literal_dict(text, name).items():
        try:
            parts = str(key).replace(" ", "")
            if "," in parts:
                numbers = [int(part) for part in parts.split(",")]
            else:
                first, _, last = parts.partition("-")
                numbers = list(range(int(first), int(last or first) + 1))
            lr = float(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{name} must be a dictionary such as {{'1': 0.1, '2-4': 0.05, '5,6': 0.01}}, but has {key!r}: {value!r}"
            ) from None
        if not 0 <= lr < float("inf"):
            raise ConfigError(f"the learning rates of {name} must be at least 0, but that of {key!r} is {lr}")
        table.update(dict.fromkeys(numbers, lr))
    return table


@register_lr_scheduler("pass_through", dataclass=PassThroughScheduleConfig)
class PassThroughScheduleSchedule(FairseqLRScheduler):
    """The optimizer's own schedule, its attribute ``lr_scheduler``. No built-in optimizer has one."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        if getattr(optimizer, "lr_scheduler", None) is None:
            raise ConfigError(
                f"the pass_through schedule is for optimizers of plugins with a schedule of their own (an attribute "
                f"lr_scheduler), which {type(optimizer).__name__} does not have: choose another --lr-scheduler"
            )

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.lr_scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.lr_scheduler.load_state_dict(state_dict)

    def step_begin_epoch(self, epoch: int) -> Any:
        return self.optimizer.lr_scheduler.step_begin_epoch(epoch)

    def step_update(self, num_updates: int) -> float:
        return self.optimizer.lr_scheduler.step_update(num_updates)
