"""Learning-rate schedules: what each offers to the trainer, registration and building, and those that are curves over the
number of updates. Three others are in ``other_schedules.py``.

The trainer calls ``step_begin_epoch`` and then ``step_update`` when an epoch begins, ``step_update(n)`` after update
``n`` (it returns the learning rate of update ``n + 1``), and ``step`` with the validation loss when an epoch ends.
Parameter groups with an ``lr_scale`` of their own keep their ratio: schedules set one learning rate for all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.dataclass.base import literal
from fairseq.errors import ConfigError
from fairseq.optim.configs import (
    BudgetTriangularLRScheduleConfig,
    CosineLRScheduleConfig,
    FixedLRScheduleConfig,
    InverseSquareRootLRScheduleConfig,
    PolynomialDecayLRScheduleConfig,
    StepLRScheduleConfig,
    TriangularLRScheduleConfig,
    TriStageLRScheduleConfig,
)
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, learning_rates
from fairseq.registry import LR_SCHEDULERS, RegistryView

C = TypeVar("C")

__path__: list[str] = []  # the original had a package here: old modules below it are found through fairseq.compat


def single_lr(cfg: Any, schedule: str) -> float:
    """The configured learning rate, for schedules that take only one."""
    values = learning_rates(cfg)
    if len(values) > 1:
        raise ConfigError(
            f"the {schedule} schedule takes one learning rate, but lr is {values}; "
            "learning rates per epoch need --lr-scheduler=fixed"
        )
    return values[0]


class FairseqLRScheduler:
    """Base class; subclasses compute the learning rate in :meth:`step_update` and set it with ``self.optimizer.set_lr``."""

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
        """Set the learning rate for the beginning of ``epoch`` (from 1)."""

    def step(self, epoch: int, val_loss: float | None = None) -> Any:
        """Note the validation loss at the end of ``epoch``."""
        if val_loss is not None and not math.isnan(val_loss):
            self.best = val_loss if self.best is None else min(self.best, val_loss)

    def step_update(self, num_updates: int) -> float:
        """Set and return the learning rate for the update after ``num_updates`` completed ones."""
        return self.optimizer.get_lr()

    def _set(self, lr: float) -> float:
        self.optimizer.set_lr(lr)
        return self.optimizer.get_lr()


class LegacyFairseqLRScheduler(FairseqLRScheduler):
    """Base of old user code that keeps its options in ``self.args``."""

    def __init__(self, args: Any, optimizer: Any) -> None:
        super().__init__(args, optimizer)
        self.args = args


LR_SCHEDULER_REGISTRY = RegistryView(LR_SCHEDULERS)


def register_lr_scheduler(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: make a :class:`FairseqLRScheduler` available as ``--lr-scheduler name``."""
    return LR_SCHEDULERS.register(name, dataclass=dataclass, base=FairseqLRScheduler)


def build_lr_scheduler(cfg: Any, optimizer: Any) -> FairseqLRScheduler:
    """Build the schedule that ``cfg`` names: the ``lr_scheduler`` node, or an old flat Namespace."""
    return LR_SCHEDULERS.build(cfg, "lr_scheduler", optimizer)


class StoresRate(FairseqLRScheduler):
    """A schedule whose state is the learning rate ``lr``."""

    lr: Any

    def state_dict(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        stored = state_dict.get("lr")
        self.lr = self.lr if stored is None else stored


class _PerEpoch(FairseqLRScheduler):
    """What the two schedules share that may have a learning rate per epoch: ``lr``, and the warm-up's factor on it."""

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.lr = learning_rates(cfg)[0]
        self.warmup_factor = 1.0 / cfg.warmup_updates if cfg.warmup_updates > 0 else 1.0

    def get_next_lr(self, epoch: int) -> float:
        raise NotImplementedError

    def step_begin_epoch(self, epoch: int) -> float:
        self.lr = self.get_next_lr(epoch)
        return self._set(self.warmup_factor * self.lr)

    def _warm_up(self, fraction: float) -> float:
        self.warmup_factor = fraction
        return self._set(fraction * self.lr)


@register_lr_scheduler("fixed", dataclass=FixedLRScheduleConfig)
class FixedLRSchedule(StoresRate, _PerEpoch):
    """With w = warmup_updates and n completed updates: base(epoch) * (n + 1) / w while n < w, then base(epoch).

    base(epoch) is the epoch's entry of lr (the last one repeats); from force_anneal on, the last entry times
    lr_shrink ^ (epoch + 1 - force_anneal).
    """

    def get_next_lr(self, epoch: int) -> float:
        values = learning_rates(self.cfg)
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return values[min(epoch - 1, len(values) - 1)]
        return values[-1] * self.cfg.lr_shrink ** (epoch + 1 - self.cfg.force_anneal)

    def step_update(self, num_updates: int) -> float:
        if num_updates < self.cfg.warmup_updates:
            return self._warm_up((num_updates + 1) / self.cfg.warmup_updates)
        return self._set(self.lr)


@register_lr_scheduler("polynomial_decay", dataclass=PolynomialDecayLRScheduleConfig)
class PolynomialDecayLRSchedule(_PerEpoch):
    """With w = warmup_updates, N = total_num_update and n completed updates.

    n <= w: lr * n / w, so the very first update has learning rate 0; n >= N: end_learning_rate; between:
    (lr - end) * (1 - (n - w) / (N - w)) ^ power + end.

    With several learning rates, epoch e uses entry e counted from 0 (one later than ``fixed``), as the original does.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        if not (cfg.total_num_update or 0) > 0:
            raise ConfigError(
                f"total_num_update is {cfg.total_num_update}, but polynomial_decay needs a positive number of updates; "
                "set it, or set max_update"
            )
        self._set(self.warmup_factor * self.lr)

    def get_next_lr(self, epoch: int) -> float:
        values = learning_rates(self.cfg)
        if self.cfg.force_anneal is None or epoch < self.cfg.force_anneal:
            return values[min(epoch, len(values) - 1)]
        return self.optimizer.get_lr()

    def step_update(self, num_updates: int) -> float:
        warmup, total, end = self.cfg.warmup_updates, self.cfg.total_num_update, self.cfg.end_learning_rate
        if warmup > 0 and num_updates <= warmup:
            return self._warm_up(num_updates / warmup)
        if num_updates >= total:
            return self._set(end)
        remaining = 1 - (num_updates - warmup) / (total - warmup)
        return self._set((self.lr - end) * remaining**self.cfg.power + end)


class _Curve(FairseqLRScheduler):
    """A learning rate that follows from the number of updates alone."""

    def lr_at(self, num_updates: int) -> float:
        raise NotImplementedError

    def step_update(self, num_updates: int) -> float:
        return self._set(self.lr_at(num_updates))


@register_lr_scheduler("cosine", dataclass=CosineLRScheduleConfig)
class CosineLRSchedule(_Curve):
    """Loshchilov and Hutter, SGDR (2017). With w = warmup_updates and n completed updates.

    n < w: from warmup_init_lr (default: min_lr) straight to lr. Then period i of length T, of which t updates are
    over: lo + (hi - lo) / 2 * (1 + cos(pi * t / T)), where lo and hi are min_lr and lr times lr_shrink ^ i. Each period
    is t_mult times as long as the one before.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.max_lr = single_lr(cfg, "cosine")
        if self.max_lr <= cfg.min_lr:
            raise ConfigError(f"lr ({self.max_lr}) must be greater than min_lr ({cfg.min_lr}) for the cosine schedule")
        if cfg.t_mult < 1:
            raise ConfigError(f"t_mult must be at least 1, but is {cfg.t_mult}")
        self.warmup_init_lr = cfg.min_lr if cfg.warmup_init_lr < 0 else cfg.warmup_init_lr
        self.period = cfg.lr_period_updates
        if self.period <= 0:
            if cfg.max_update <= cfg.warmup_updates:
                raise ConfigError(
                    f"max_update ({cfg.max_update}) must be greater than warmup_updates ({cfg.warmup_updates}) for the "
                    "cosine schedule; set it, or set lr_period_updates"
                )
            self.period = cfg.max_update - cfg.warmup_updates
        self._set(self.warmup_init_lr)

    def lr_at(self, num_updates: int) -> float:
        warmup = self.cfg.warmup_updates
        if num_updates < warmup:
            return self.warmup_init_lr + num_updates * ((self.max_lr - self.warmup_init_lr) / warmup)
        i, t, length = self._position(num_updates - warmup)
        shrink = self.cfg.lr_shrink**i
        low, high = self.cfg.min_lr * shrink, self.max_lr * shrink
        return low + 0.5 * (high - low) * (1 + math.cos(math.pi * t / length))

    def _position(self, updates: int) -> tuple[int, float, float]:
        """(number of the period, updates into it, its length) after ``updates`` updates of annealing."""
        t_mult = self.cfg.t_mult
        if t_mult == 1:
            i = math.floor(updates / self.period)
            return i, updates - self.period * i, self.period
        i = math.floor(math.log(1 - updates / self.period * (1 - t_mult), t_mult))
        return i, updates - (1 - t_mult**i) / (1 - t_mult) * self.period, t_mult**i * self.period


@register_lr_scheduler("inverse_sqrt", dataclass=InverseSquareRootLRScheduleConfig)
class InverseSquareRootSchedule(_Curve):
    """Vaswani et al. (2017), section 5.3. With w = warmup_updates and n completed updates.

    n < w: from warmup_init_lr (default 0) straight to lr; then lr * sqrt(w) / sqrt(n).
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        peak = single_lr(cfg, "inverse_sqrt")
        if cfg.warmup_updates <= 0:
            raise ConfigError(
                f"warmup_updates must be positive for the inverse_sqrt schedule, but is {cfg.warmup_updates}"
            )
        self.warmup_init_lr = 0.0 if cfg.warmup_init_lr < 0 else cfg.warmup_init_lr
        self.lr_step = (peak - self.warmup_init_lr) / cfg.warmup_updates
        self.decay_factor = peak * cfg.warmup_updates**0.5
        self._set(self.warmup_init_lr)

    def lr_at(self, num_updates: int) -> float:
        if num_updates < self.cfg.warmup_updates:
            return self.warmup_init_lr + num_updates * self.lr_step
        return self.decay_factor * num_updates**-0.5


@register_lr_scheduler("tri_stage", dataclass=TriStageLRScheduleConfig)
class TriStageLRSchedule(_Curve):
    """Park et al., SpecAugment (2019). With n completed updates and stages of W, H and D updates.

    n < W: from init_lr_scale * lr straight to lr; n < W + H: lr; n <= W + H + D, k updates into the decay:
    lr * final_lr_scale ^ (k / D); afterwards final_lr_scale * lr.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.peak_lr = single_lr(cfg, "tri_stage")
        self.init_lr = cfg.init_lr_scale * self.peak_lr
        if cfg.final_lr_scale <= 0:
            raise ConfigError(f"final_lr_scale must be positive, but is {cfg.final_lr_scale}")
        self.warmup_steps, self.hold_steps, self.decay_steps = _stages(cfg)
        if self.decay_steps <= 0:
            raise ConfigError(f"decay_steps must be positive for the tri_stage schedule, but is {self.decay_steps}")
        self.warmup_rate = (self.peak_lr - self.init_lr) / self.warmup_steps if self.warmup_steps else 0.0
        self.decay_factor = -math.log(cfg.final_lr_scale) / self.decay_steps
        self._set(self.init_lr)

    def lr_at(self, num_updates: int) -> float:
        decayed = num_updates - self.warmup_steps - self.hold_steps
        if num_updates < self.warmup_steps:
            return self.init_lr + self.warmup_rate * num_updates
        if decayed < 0:
            return self.peak_lr
        if decayed <= self.decay_steps:
            return self.peak_lr * math.exp(-self.decay_factor * decayed)
        return self.cfg.final_lr_scale * self.peak_lr


@register_lr_scheduler("triangular", dataclass=TriangularLRScheduleConfig)
class TriangularLRSchedule(_Curve):
    """Smith, Cyclical Learning Rates (2017). With half periods of h = lr_period_updates // 2 and n completed updates.

    In cycle c = floor(n / 2h), with x = |n / h - 2c - 1|: low + (high - low) * (1 - x), where high is max_lr * lr_shrink ^ c
    and low is lr, with shrink_min shrunk alike.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.min_lr = single_lr(cfg, "triangular")
        if not cfg.max_lr > self.min_lr:
            raise ConfigError(
                f"max_lr ({cfg.max_lr}) must be greater than lr ({self.min_lr}) for the triangular schedule"
            )
        self.half_period = cfg.lr_period_updates // 2
        self._set(self.min_lr)

    def lr_at(self, num_updates: int) -> float:
        cycle = math.floor(num_updates / (2 * self.half_period))
        shrink = self.cfg.lr_shrink**cycle
        low, high = self.min_lr * shrink if self.cfg.shrink_min else self.min_lr, self.cfg.max_lr * shrink
        distance = abs(num_updates / self.half_period - 2 * (cycle + 1) + 1)
        return low + (high - low) * max(0, 1 - distance)


@register_lr_scheduler("step", dataclass=StepLRScheduleConfig)
class StepLRSchedule(_Curve):
    """With w = warmup_updates and n completed updates.

    n < w: from warmup_init_lr (default: min_lr) straight to lr; then lr * lr_decay ^ floor((n - w) / lr_deacy_period), at
    least min_lr.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.max_lr = learning_rates(cfg)[0]
        if not self.max_lr > cfg.min_lr:
            raise ConfigError(f"lr ({self.max_lr}) must be greater than min_lr ({cfg.min_lr}) for the step schedule")
        self.warmup_init_lr = cfg.warmup_init_lr if cfg.warmup_init_lr >= 0 else cfg.min_lr
        self._set(self.warmup_init_lr)

    def lr_at(self, num_updates: int) -> float:
        warmup = self.cfg.warmup_updates
        if num_updates < warmup:
            return self.warmup_init_lr + num_updates * ((self.max_lr - self.warmup_init_lr) / warmup)
        decays = (num_updates - warmup) // self.cfg.lr_deacy_period
        return max(self.max_lr * self.cfg.lr_decay**decays, self.cfg.min_lr)


@register_lr_scheduler("budget_triangular", dataclass=BudgetTriangularLRScheduleConfig)
class BudgetTriangularLRSchedule(_Curve):
    """Geiping and Goldstein, Cramming (2022), ``budget-triangle2``. With q the part of the budget that is used up:
    lr * min(1/4 + q, 4 (1 - q)), which is lr at q = 3/4, and 0 from q = 1 on.

    q is n / max_update after n updates, or the hours of training, those of resumed runs included, / stop_time_hours.
    """

    def __init__(self, cfg: Any, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        self.peak_lr = single_lr(cfg, "budget_triangular")
        self.by_clock = cfg.budget == "hours"
        self.whole = 3600 * cfg.stop_time_hours if self.by_clock else cfg.max_update  # seconds, or updates
        if not self.whole > 0:
            name = "stop_time_hours" if self.by_clock else "max_update"
            raise ConfigError(f"the budget_triangular schedule counts {cfg.budget}: set {name}, which is its budget")
        self.seconds, self.started = 0.0, time.monotonic()
        self._set(self.peak_lr / 4)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **({"seconds": self._elapsed()} if self.by_clock else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.seconds, self.started = state_dict.get("seconds", 0.0), time.monotonic()

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def lr_at(self, num_updates: int) -> float:
        used = (self._elapsed() if self.by_clock else num_updates) / self.whole
        return self.peak_lr * max(min(0.25 + used, 4 * (1 - used)), 0.0)


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
