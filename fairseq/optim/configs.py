"""Options of the optimizers and learning-rate schedules (free of torch, so that ``--help`` stays quick).

Field names and defaults are the ones stored in the ``optimizer`` and ``lr_scheduler`` nodes of old checkpoints and
YAML files. Values shared with another section are interpolations (``${optimization.lr}``) that the configuration
layer resolves; they are not options of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq.dataclass.base import II, FairseqDataclass, option

# ---------------------------------------------------------------------------------------------------- optimizers

_SPARSE_HELP = (
    "rows of fast feed-forward tables that no token of the update visited (zero gradient in the sum of its "
    "micro-batches) keep weights and moments and do not decay; the count of updates stays that of the optimizer"
)


@dataclass(kw_only=True)
class FairseqAdamConfig(FairseqDataclass):
    """Adam as fairseq defines it: decoupled weight decay, by default on everything, epsilon on the uncorrected second
    moment."""

    adam_betas: Any = option("(0.9, 0.999)", "decay rates of the first and second moment, as a pair")
    adam_eps: float = option(1e-8, "added to the square root of the uncorrected second moment")
    weight_decay: float = option(
        0.0, "decoupled decay: each update shrinks the weights by this times the learning rate"
    )
    fff_sparse_update: bool = option(False, _SPARSE_HELP, new=True)
    no_decay: str = option(
        "", "comma-separated pieces of parameter names that get no weight decay, as in bias,norm", new=True
    )
    use_old_adam: bool = option(False, "accepted for old commands; there is one Adam now")
    fp16_adam_stats: bool = option(False, "not available: the moments are always float32")
    tpu: bool = II("common.tpu")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class AdamWConfig(FairseqDataclass):
    """AdamW as published: epsilon on the corrected second moment, chosen parameters free of weight decay."""

    adam_betas: Any = option("(0.9, 0.999)", "decay rates of the first and second moment, as a pair")
    adam_eps: float = option(1e-8, "added to the square root of the bias-corrected second moment")
    weight_decay: float = option(
        0.0, "decoupled decay: each update shrinks the weights by this times the learning rate", alias="--wd"
    )
    no_decay: str = option(
        "bias,norm", "comma-separated pieces of parameter names that get no weight decay (empty: decay everything)"
    )
    fff_sparse_update: bool = option(False, _SPARSE_HELP, new=True)
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class SGDConfig(FairseqDataclass):
    """Stochastic gradient descent."""

    momentum: float = option(0.0, "momentum factor")
    weight_decay: float = option(0.0, "weight decay, added to the gradient (L2)", alias="--wd")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class AdagradConfig(FairseqDataclass):
    """Adagrad."""

    weight_decay: float = option(0.0, "weight decay, added to the gradient (L2)", alias="--wd")
    lr: list[float] = II("optimization.lr")


# ------------------------------------------------------------------------------------------------------ schedules


@dataclass(kw_only=True)
class FixedLRScheduleConfig(FairseqDataclass):
    """One learning rate per epoch, shrinking from ``force_anneal`` on, after an optional linear warm-up."""

    force_anneal: int | None = option(None, "shrink the learning rate from this epoch on")
    lr_shrink: float = option(0.1, "factor per epoch once annealing has begun", alias="--lrs")
    warmup_updates: int = option(0, "grow the learning rate linearly over this many updates")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class PolynomialDecayLRScheduleConfig(FairseqDataclass):
    """Linear warm-up from zero, then a polynomial down to ``end_learning_rate``."""

    warmup_updates: int = option(0, "grow the learning rate linearly over this many updates")
    force_anneal: int | None = option(None, "keep the learning rate of the previous epoch from this epoch on")
    end_learning_rate: float = option(0.0, "learning rate at and after total_num_update")
    power: float = option(1.0, "exponent of the decay (1: linear)")
    total_num_update: float = option(
        II("optimization.max_update"), "update at which the decay ends (default: max_update)"
    )
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class CosineLRScheduleConfig(FairseqDataclass):
    """Linear warm-up, then cosine annealing with warm restarts."""

    warmup_updates: int = option(0, "grow the learning rate linearly over this many updates")
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: min_lr)")
    lr: list[float] = II("optimization.lr")
    min_lr: float = option(0.0, "lowest learning rate")
    t_mult: float = option(1.0, "factor by which each period is longer than the one before")
    lr_period_updates: float = option(-1, "updates in the first period (not positive: all after the warm-up)")
    lr_shrink: float = option(0.1, "factor on the learning rates from one period to the next")
    max_update: int = II("optimization.max_update")


@dataclass(kw_only=True)
class InverseSquareRootLRScheduleConfig(FairseqDataclass):
    """Linear warm-up, then decay with the inverse square root of the update number."""

    warmup_updates: int = option(4000, "grow the learning rate linearly over this many updates")
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: 0)")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class TriStageLRScheduleConfig(FairseqDataclass):
    """Warm-up, hold, exponential decay."""

    warmup_steps: int = option(0, "updates of linear warm-up")
    hold_steps: int = option(0, "updates at the full learning rate")
    decay_steps: int = option(0, "updates of exponential decay")
    phase_ratio: tuple[float, float, float] | None = option(
        None, "the three lengths as fractions of max_update that sum to 1, e.g. (0.1, 0.4, 0.5)"
    )
    init_lr_scale: float = option(0.01, "learning rate at update 0, as a fraction of the full learning rate")
    final_lr_scale: float = option(0.01, "learning rate after the decay, as a fraction of the full learning rate")
    max_update: float = II("optimization.max_update")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class BudgetTriangularLRScheduleConfig(FairseqDataclass):
    """Up and down again over a budget: from a quarter of lr to lr at three quarters, to 0 at the end."""

    budget: str = option(
        "updates",
        "what the budget is counted in; updates: max-update, the same run every time; hours: stop-time-hours, by the clock",
        choices=("updates", "hours"),
    )
    lr: list[float] = II("optimization.lr")
    max_update: int = II("optimization.max_update")
    stop_time_hours: float = II("optimization.stop_time_hours")
