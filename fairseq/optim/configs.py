"""Options of the optimizers and learning-rate schedules (free of torch, so that ``--help`` stays quick).

Field names and defaults are the ones stored in the ``optimizer`` and ``lr_scheduler`` nodes of old checkpoints and
YAML files. Values shared with another section are interpolations (``${optimization.lr}``) that the configuration
layer resolves; they are not options of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fairseq.dataclass.base import II, MISSING, FairseqDataclass, option

# ---------------------------------------------------------------------------------------------------- optimizers

_FROM_0 = "[0, inf)"
_POSITIVE = "(0, inf)"
_FINITE = "(-inf, inf)"
_DECOUPLED = "decoupled decay: each update shrinks the weights by this times the learning rate"
_L2 = "weight decay, added to the gradient (L2)"
_WARMUP = "grow the learning rate linearly over this many updates"
_SPARSE_HELP = (
    "rows of fast feed-forward tables that no token of the update visited (zero gradient in the sum of its "
    "micro-batches) keep weights and moments and do not decay; the count of updates stays that of the optimizer"
)


@dataclass(kw_only=True)
class FairseqAdamConfig(FairseqDataclass):
    """Adam as fairseq defines it: decoupled weight decay, by default on everything, epsilon on the uncorrected second
    moment."""

    adam_betas: Any = option("(0.9, 0.999)", "decay rates of the first and second moment, as a pair")
    adam_eps: float = option(1e-8, "added to the square root of the uncorrected second moment", within=_POSITIVE)
    weight_decay: float = option(0.0, _DECOUPLED, within=_FROM_0)
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
    adam_eps: float = option(1e-8, "added to the square root of the bias-corrected second moment", within=_POSITIVE)
    weight_decay: float = option(0.0, _DECOUPLED, within=_FROM_0, alias="--wd")
    no_decay: str = option(
        "bias,norm", "comma-separated pieces of parameter names that get no weight decay (empty: decay everything)"
    )
    fff_sparse_update: bool = option(False, _SPARSE_HELP, new=True)
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class SGDConfig(FairseqDataclass):
    """Stochastic gradient descent."""

    momentum: float = option(0.0, "momentum factor", within="[0, 1)")
    weight_decay: float = option(0.0, _L2, within=_FROM_0, alias="--wd")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class AdagradConfig(FairseqDataclass):
    """Adagrad."""

    weight_decay: float = option(0.0, _L2, within=_FROM_0, alias="--wd")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class AdadeltaConfig(FairseqDataclass):
    """Adadelta."""

    adadelta_rho: float = option(0.9, "decay rate of the averages of squares", within="[0, 1)")
    adadelta_eps: float = option(1e-6, "added to the averages of squares", within=_POSITIVE)
    weight_decay: float = option(0.0, _L2, within=_FROM_0, alias="--wd")
    anneal_eps: bool = option(False, "accepted without effect, as in the original")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class FairseqAdamaxConfig(FairseqDataclass):
    """Adamax as fairseq defines it: epsilon outside the maximum, decoupled weight decay."""

    adamax_betas: Any = option("(0.9, 0.999)", "decay rates of the first moment and of the norm, as a pair")
    adamax_eps: float = option(1e-8, "added to the norm", within=_POSITIVE)
    weight_decay: float = option(0.0, _DECOUPLED, within=_FROM_0, alias="--wd")
    no_bias_correction: bool = option(False, "do not correct the bias of the first moment")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class FairseqNAGConfig(FairseqDataclass):
    """Nesterov's accelerated gradient as fairseq defines it: the velocity follows changes of the learning rate."""

    momentum: float = option(0.99, "momentum factor", within="[0, 1)")
    weight_decay: float = option(0.0, _DECOUPLED, within=_FROM_0, alias="--wd")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class FairseqLAMBConfig(FairseqDataclass):
    """LAMB as apex's FusedLAMB computes it: gradients clipped to norm 1, trust ratios only with weight decay."""

    lamb_betas: Any = option("(0.9, 0.999)", "decay rates of the first and second moment, as a pair")
    lamb_eps: float = option(1e-8, "added to the square root of the bias-corrected second moment", within=_POSITIVE)
    weight_decay: float = option(
        0.0, "decay, added to the update before its norm is taken; 0: no trust ratio", within=_FROM_0, alias="--wd"
    )
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class FairseqAdafactorConfig(FairseqDataclass):
    """Adafactor: second moments of matrices as rows times columns."""

    adafactor_eps: Any = option("(1e-30, 1e-3)", "added to squared gradients; least scale of a parameter; as a pair")
    clip_threshold: float = option(1.0, "most root mean square of an update", within=_POSITIVE)
    decay_rate: float = option(-0.8, "exponent of the second moment's decay", within="(-inf, 0]")
    beta1: float | None = option(None, "decay rate of the first moment; default: there is none", within="[0, 1)")
    weight_decay: float = option(0.0, _DECOUPLED, within=_FROM_0, alias="--wd")
    scale_parameter: bool = option(False, "multiply the learning rate by the root mean square of each parameter")
    relative_step: bool = option(
        False, "learning rate: the inverse square root of the number of updates, at most 0.01; lr is ignored"
    )
    warmup_init: bool = option(False, "with relative-step: begin with 1e-6 times the number of updates")
    lr: list[float] = II("optimization.lr")


# ------------------------------------------------------------------------------------------------------ schedules


@dataclass(kw_only=True)
class FixedLRScheduleConfig(FairseqDataclass):
    """One learning rate per epoch, shrinking from ``force_anneal`` on, after an optional linear warm-up."""

    force_anneal: int | None = option(None, "shrink the learning rate from this epoch on", within=_FROM_0)
    lr_shrink: float = option(0.1, "factor per epoch once annealing has begun", within=_POSITIVE, alias="--lrs")
    warmup_updates: int = option(0, _WARMUP, within=_FROM_0)
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class PolynomialDecayLRScheduleConfig(FairseqDataclass):
    """Linear warm-up from zero, then a polynomial down to ``end_learning_rate``."""

    warmup_updates: int = option(0, _WARMUP, within=_FROM_0)
    force_anneal: int | None = option(
        None, "keep the learning rate of the previous epoch from this epoch on", within=_FROM_0
    )
    end_learning_rate: float = option(0.0, "learning rate at and after total_num_update", within=_FROM_0)
    power: float = option(1.0, "exponent of the decay (1: linear)", within=_POSITIVE)
    total_num_update: float = option(
        II("optimization.max_update"), "update at which the decay ends (default: max_update)", within=_FROM_0
    )
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class CosineLRScheduleConfig(FairseqDataclass):
    """Linear warm-up, then cosine annealing with warm restarts."""

    warmup_updates: int = option(0, _WARMUP, within=_FROM_0)
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: min_lr)", within=_FINITE)
    lr: list[float] = II("optimization.lr")
    min_lr: float = option(0.0, "lowest learning rate", within=_FROM_0)
    t_mult: float = option(1.0, "factor by which each period is longer than the one before", within="[1, inf)")
    lr_period_updates: float = option(
        -1, "updates in the first period (not positive: all after the warm-up)", within=_FINITE
    )
    lr_shrink: float = option(0.1, "factor on the learning rates from one period to the next", within=_POSITIVE)
    max_update: int = II("optimization.max_update")


@dataclass(kw_only=True)
class InverseSquareRootLRScheduleConfig(FairseqDataclass):
    """Linear warm-up, then decay with the inverse square root of the update number."""

    warmup_updates: int = option(4000, _WARMUP, within=_FROM_0)
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: 0)", within=_FINITE)
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class TriStageLRScheduleConfig(FairseqDataclass):
    """Warm-up, hold, exponential decay."""

    warmup_steps: int = option(0, "updates of linear warm-up", within=_FROM_0)
    hold_steps: int = option(0, "updates at the full learning rate", within=_FROM_0)
    decay_steps: int = option(0, "updates of exponential decay", within=_FROM_0)
    phase_ratio: tuple[float, float, float] | None = option(
        None, "the three lengths as fractions of max_update that sum to 1, e.g. (0.1, 0.4, 0.5)"
    )
    init_lr_scale: float = option(
        0.01, "learning rate at update 0, as a fraction of the full learning rate", within=_FROM_0
    )
    final_lr_scale: float = option(
        0.01, "learning rate after the decay, as a fraction of the full learning rate", within=_POSITIVE
    )
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


@dataclass(kw_only=True)
class TriangularLRScheduleConfig(FairseqDataclass):
    """Up from lr to max_lr and down again, period after period."""

    max_lr: float = option(MISSING, "learning rate at the top, above lr", within=_POSITIVE)
    lr_period_updates: float = option(5000, "updates from one bottom to the next", within="[2, inf)")
    lr_shrink: float = option(0.1, "factor on the top from one period to the next", within=_POSITIVE)
    shrink_min: bool = option(False, "shrink the bottom, too")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class ReduceLROnPlateauLRScheduleConfig(FairseqDataclass):
    """Shrink the learning rate when the validation loss at the end of an epoch is no better than before."""

    lr_shrink: float = option(0.1, "factor on the learning rate", within="(0, 1)")
    lr_threshold: float = option(1e-4, "smallest relative improvement that counts", within=_FROM_0)
    lr_patience: int = option(0, "epochs without improvement that change nothing", within=_FROM_0)
    warmup_updates: int = option(0, _WARMUP, within=_FROM_0)
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: 0; without warm-up lr)", within=_FINITE)
    lr: list[float] = II("optimization.lr")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@dataclass(kw_only=True)
class StepLRScheduleConfig(FairseqDataclass):
    """Linear warm-up, then a factor after every so many updates."""

    warmup_updates: int = option(0, _WARMUP, within=_FROM_0)
    warmup_init_lr: float = option(-1, "learning rate at update 0 (negative: min_lr)", within=_FINITE)
    lr: list[float] = II("optimization.lr")
    min_lr: float = option(0.0, "lowest learning rate", within=_FROM_0)
    lr_deacy_period: int = option(
        25000,
        "updates from one decay to the next (the original's spelling)",
        within="[1, inf)",
        alias="--lr-decay-period",
    )
    lr_decay: float = option(0.5, "factor on the learning rate", within="(0, 1]")


@dataclass(kw_only=True)
class ManualScheduleConfig(FairseqDataclass):
    """Learning rates from tables of epochs and updates."""

    epoch2lr: str = option(
        "{}",
        "learning rates by epoch, from 1: a dictionary such as {'1': 0.1, '2-4': 0.05, '5,6': 0.01}; the last one stays",
    )
    update2lr: str = option("{}", "learning rates by completed updates, written alike; they come before those by epoch")
    lr: list[float] = II("optimization.lr")


@dataclass(kw_only=True)
class PassThroughScheduleConfig(FairseqDataclass):
    """The optimizer (of a plugin) has a schedule of its own."""
