"""Learning-rate schedules: published check values, state, epochs and bad settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.optim import build_optimizer
from fairseq.optim.configs import (
    BudgetTriangularLRScheduleConfig,
    CosineLRScheduleConfig,
    FixedLRScheduleConfig,
    InverseSquareRootLRScheduleConfig,
    PolynomialDecayLRScheduleConfig,
    SGDConfig,
    TriStageLRScheduleConfig,
)
from fairseq.optim.lr_scheduler import FairseqLRScheduler, build_lr_scheduler, register_lr_scheduler

CONFIGS = {
    "fixed": FixedLRScheduleConfig,
    "polynomial_decay": PolynomialDecayLRScheduleConfig,
    "cosine": CosineLRScheduleConfig,
    "inverse_sqrt": InverseSquareRootLRScheduleConfig,
    "tri_stage": TriStageLRScheduleConfig,
    "budget_triangular": BudgetTriangularLRScheduleConfig,
}


def make(name: str, lr: list[float], **settings: Any) -> FairseqLRScheduler:
    optimizer = build_optimizer(SGDConfig(_name="sgd", lr=lr), [torch.nn.Parameter(torch.zeros(1))])
    return build_lr_scheduler(CONFIGS[name](_name=name, lr=lr, **settings), optimizer)


def test_polynomial_decay_values() -> None:
    schedule = make("polynomial_decay", [5e-4], warmup_updates=10000, total_num_update=125000)
    rates = [schedule.step_update(n) for n in (0, 1, 10000, 67500, 124999, 125000, 200000)]
    assert rates == pytest.approx([0, 5e-8, 5e-4, 2.5e-4, 4.347826e-9, 0, 0], rel=1e-6)
    curved = make("polynomial_decay", [1.0], total_num_update=100, power=2.0, end_learning_rate=0.1)
    assert [curved.step_update(n) for n in (0, 50, 100)] == pytest.approx([1.0, 0.9 * 0.25 + 0.1, 0.1])
    short = make("polynomial_decay", [1.0], total_num_update=5, warmup_updates=10)
    assert [short.step_update(n) for n in (5, 10, 11)] == [0.5, 1.0, 0.0]


def test_polynomial_decay_reads_the_next_epochs_rate() -> None:
    schedule = make("polynomial_decay", [1.0, 2.0, 3.0], total_num_update=100, force_anneal=3)
    schedule.step_begin_epoch(1)
    assert schedule.step_update(0) == 2.0
    schedule.step_begin_epoch(2)
    assert schedule.step_update(0) == 3.0
    schedule.step_begin_epoch(3)
    assert schedule.step_update(50) == 1.5


def test_cosine_values() -> None:
    schedule = make(
        "cosine", [6e-4], warmup_updates=10000, min_lr=6e-5, lr_period_updates=146390, lr_shrink=1.0, max_update=133082
    )
    rates = [schedule.step_update(n) for n in (0, 1, 5000, 10000, 50000, 133082)]
    assert rates == pytest.approx(
        [6e-5, 6.0054e-5, 3.3e-4, 6e-4, 5.064817470957992e-4, 9.307856978244537e-5], rel=1e-14
    )
    large = make(
        "cosine", [4e-4], warmup_updates=10000, min_lr=4e-5, lr_period_updates=146390, lr_shrink=1.0, max_update=133082
    )
    assert large.step_update(133082) == pytest.approx(6.205237985496359e-5, rel=1e-14)


def test_cosine_restarts() -> None:
    schedule = make("cosine", [1.0], lr_period_updates=10, lr_shrink=0.5, max_update=100)
    assert [schedule.step_update(n) for n in (0, 5, 10, 15)] == pytest.approx([1.0, 0.5, 0.5, 0.25])
    longer = make("cosine", [1.0], lr_period_updates=10, t_mult=2.0, lr_shrink=0.5, max_update=100)
    # Periods: 0..10, 10..30, 30..70.
    assert [longer.step_update(n) for n in (5, 20, 31)] == pytest.approx(
        [0.5, 0.25, 0.25 * 0.5 * (1 + math.cos(math.pi / 40))]
    )


def test_inverse_sqrt_values() -> None:
    schedule = make("inverse_sqrt", [0.5], warmup_updates=4)
    assert [schedule.step_update(n) for n in (0, 1, 4, 16)] == [0.0, 0.125, 0.5, 0.25]
    assert make("inverse_sqrt", [0.5], warmup_updates=4, warmup_init_lr=0.1).step_update(2) == pytest.approx(0.3)


def test_tri_stage_values() -> None:
    schedule = make("tri_stage", [1.0], phase_ratio=(0.1, 0.4, 0.5), max_update=100)
    rates = [schedule.step_update(n) for n in (0, 5, 10, 49, 50, 75, 100, 101)]
    assert rates == pytest.approx([0.01, 0.505, 1.0, 1.0, 1.0, 0.1, 0.01, 0.01])
    given = make("tri_stage", [1.0], hold_steps=2, decay_steps=4, final_lr_scale=0.5, max_update=0)
    assert [given.step_update(n) for n in (0, 2, 4, 9)] == pytest.approx([1.0, 1.0, 0.5**0.5, 0.5])


def test_fixed_values() -> None:
    schedule = make("fixed", [1.0, 0.5], warmup_updates=4, force_anneal=4, lr_shrink=0.1)
    assert schedule.step_begin_epoch(1) == 0.25
    assert [schedule.step_update(n) for n in (0, 1, 3, 4)] == [0.25, 0.5, 1.0, 1.0]
    assert [schedule.step_begin_epoch(epoch) for epoch in (2, 3, 4, 5)] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    assert schedule.state_dict() == {"lr": pytest.approx(0.005)}
    other = make("fixed", [1.0])
    other.load_state_dict({"lr": 0.3})
    assert other.step_update(0) == 0.3
    other.load_state_dict({"best": None})
    assert other.step_update(0) == 0.3


def test_budget_triangular_by_updates() -> None:
    schedule = make("budget_triangular", [1e-3], max_update=400, stop_time_hours=0)
    rates = [schedule.step_update(n) for n in (0, 100, 300, 350, 400, 500)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 1e-3, 5e-4, 0, 0])


def test_budget_triangular_by_the_clock_counts_the_time_of_earlier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("fairseq.optim.lr_scheduler.time.monotonic", lambda: now)
    schedule = make("budget_triangular", [1.0], budget="hours", max_update=0, stop_time_hours=1)
    now = 50.0 + 1800
    assert schedule.step_update(7) == pytest.approx(0.75)
    state = schedule.state_dict()
    now = 1e6  # another machine, later
    resumed = make("budget_triangular", [1.0], budget="hours", max_update=0, stop_time_hours=1)
    resumed.load_state_dict(state)
    now += 900
    assert resumed.step_update(8) == pytest.approx(1.0)


@pytest.mark.parametrize("budget, name", [("updates", "max_update"), ("hours", "stop_time_hours")])
def test_budget_triangular_needs_its_budget(budget: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make("budget_triangular", [1.0], budget=budget, max_update=0, stop_time_hours=0)


@pytest.mark.parametrize("name", ["polynomial_decay", "cosine", "inverse_sqrt", "tri_stage"])
def test_best_validation_loss_is_kept(name: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "polynomial_decay": {"total_num_update": 10},
        "cosine": {"max_update": 10},
        "tri_stage": {"decay_steps": 5, "max_update": 10},
    }
    schedule = make(name, [1.0], **settings.get(name, {}))
    assert schedule.state_dict() == {"best": None}
    for loss in (math.nan, None, 3.0, 2.0, math.nan, 5.0):
        schedule.step(1, loss)
    assert schedule.state_dict() == {"best": 2.0}
    schedule.load_state_dict({"best": 1.0})
    assert schedule.best == 1.0


@pytest.mark.parametrize(
    ("name", "lr", "settings", "word"),
    [
        ("polynomial_decay", [1.0], {"total_num_update": 0}, "total_num_update"),
        ("polynomial_decay", [], {"total_num_update": 5}, "lr"),
        ("cosine", [1.0, 2.0], {"max_update": 5}, "fixed"),
        ("cosine", [1.0], {"max_update": 5, "min_lr": 1.0}, "min_lr"),
        ("cosine", [1.0], {"max_update": 5, "warmup_updates": 5}, "max_update"),
        ("cosine", [1.0], {"max_update": 5, "t_mult": 0.5}, "t_mult"),
        ("inverse_sqrt", [1.0], {"warmup_updates": 0}, "warmup_updates"),
        ("inverse_sqrt", [1.0, 2.0], {}, "fixed"),
        ("tri_stage", [1.0], {"max_update": 5}, "decay_steps"),
        ("tri_stage", [1.0], {"max_update": 5, "phase_ratio": (0.5, 0.5, 0.5)}, "sum to 1"),
        ("tri_stage", [1.0], {"max_update": 0, "phase_ratio": (0.5, 0.25, 0.25)}, "max_update"),
        ("tri_stage", [1.0], {"max_update": 5, "phase_ratio": "half"}, "phase_ratio"),
        ("tri_stage", [1.0], {"max_update": 5, "decay_steps": 3, "final_lr_scale": 0.0}, "final_lr_scale"),
    ],
)
def test_bad_settings(name: str, lr: list[float], settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build = CONFIGS[name](_name=name, lr=lr, **settings)
        optimizer = build_optimizer(SGDConfig(_name="sgd", lr=[1.0]), [torch.nn.Parameter(torch.zeros(1))])
        build_lr_scheduler(build, optimizer)


def test_plugins_and_unknown_names() -> None:
    from types import SimpleNamespace

    @register_lr_scheduler("test_constant_schedule")
    class Constant(FairseqLRScheduler):
        def step_update(self, num_updates: int) -> float:
            return self._set(0.125)

    optimizer = build_optimizer(SGDConfig(_name="sgd", lr=[1.0]), [torch.nn.Parameter(torch.zeros(1))])
    assert build_lr_scheduler(SimpleNamespace(_name="test_constant_schedule"), optimizer).step_update(3) == 0.125
    with pytest.raises(ConfigError, match="cosine"):
        build_lr_scheduler(SimpleNamespace(_name="cosin"), optimizer)
    with pytest.raises(ConfigError, match="lr-scheduler"):
        build_lr_scheduler(SimpleNamespace(), optimizer)
    with pytest.raises(ValueError, match="FairseqLRScheduler"):
        register_lr_scheduler("test_not_a_schedule")(int)
