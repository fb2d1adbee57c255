"""The schedules of old recipes: values, states, tables; and each optimizer and schedule by flags and by YAML alike."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq.dataclass.build import build_config, convert_namespace_to_omegaconf
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError
from fairseq.optim import build_optimizer
from fairseq.optim.configs import SGDConfig
from fairseq.optim.lr_scheduler import FairseqLRScheduler, build_lr_scheduler
from fairseq.optim.other_schedules import read_table
from fairseq.registry import LR_SCHEDULERS


def make(name: str, lr: float = 0.1, **settings: Any) -> FairseqLRScheduler:
    optimizer = build_optimizer(SGDConfig(_name="sgd", lr=[lr]), [torch.nn.Parameter(torch.zeros(1))])
    if name == "reduce_lr_on_plateau":
        settings.setdefault("maximize_best_checkpoint_metric", False)
    return build_lr_scheduler(LR_SCHEDULERS.config_class(name)(_name=name, lr=[lr], **settings), optimizer)  # type: ignore[misc]


@pytest.mark.parametrize("shrinks, bottoms", [(False, [0.1, 0.1]), (True, [0.05, 0.025])])
def test_triangular(shrinks: bool, bottoms: list[float]) -> None:
    schedule = make("triangular", max_lr=0.5, lr_period_updates=9, lr_shrink=0.5, shrink_min=shrinks)
    # Half periods of 9 // 2 = 4 updates.
    assert [schedule.step_update(n) for n in (0, 1, 4, 6)] == pytest.approx([0.1, 0.2, 0.5, 0.3])
    assert [schedule.step_update(n) for n in (8, 16)] == pytest.approx(bottoms)
    assert schedule.step_update(12) == pytest.approx(0.25)
    assert schedule.optimizer.get_lr() == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="max_lr"):
        make("triangular", max_lr=0.1)


def test_step() -> None:
    schedule = make("step", lr=0.8, warmup_updates=4, warmup_init_lr=0.4, min_lr=0.15, lr_deacy_period=10, lr_decay=0.5)
    values = [schedule.step_update(n) for n in (0, 1, 4, 13, 14, 23, 24, 500)]
    assert values == pytest.approx([0.4, 0.5, 0.8, 0.8, 0.4, 0.4, 0.2, 0.15])
    assert make("step", min_lr=0.05, warmup_updates=2).step_update(0) == 0.05
    with pytest.raises(ConfigError, match="min_lr"):
        make("step", min_lr=0.1)


def test_plateau_follows_the_validation_loss_and_goes_on_exactly() -> None:
    settings = {"lr_patience": 1, "lr_shrink": 0.5, "lr_threshold": 0.1}
    schedule = make("reduce_lr_on_plateau", **settings)
    rates = [schedule.step(epoch, loss) for epoch, loss in enumerate((4.0, 3.0, 2.9, None, 2.8), start=1)]
    # 2.9 and 2.8 are not a tenth better than 3.0; an epoch without validation does not count.
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05])
    schedule.step(6, 2.8)
    other = make("reduce_lr_on_plateau", **settings)
    other.load_state_dict(copy.deepcopy(schedule.state_dict()))
    other.optimizer.set_lr(schedule.optimizer.get_lr())
    assert other.step(7, 2.8) == schedule.step(7, 2.8) == pytest.approx(0.025)
    old = make("reduce_lr_on_plateau", **settings)
    old.load_state_dict({"best": 3.0, "last_epoch": 2})  # as the original stores it
    assert old.state_dict()["best"] == 3.0 and old.state_dict()["num_bad_epochs"] == 0
    highest = make("reduce_lr_on_plateau", maximize_best_checkpoint_metric=True)
    assert [highest.step(1, 1.0), highest.step(2, 2.0), highest.step(3, 1.5)] == pytest.approx([0.1, 0.1, 0.01])


def test_plateau_warms_up() -> None:
    schedule = make("reduce_lr_on_plateau", warmup_updates=4)
    assert [schedule.step_update(n) for n in (0, 1, 4)] == pytest.approx([0.0, 0.025, 0.1])
    for epoch in (1, 2, 3):
        assert schedule.step(epoch, 5.0) == pytest.approx(0.1)  # still warming up: nothing counts
    assert schedule.step_update(5) == pytest.approx(0.1)
    assert [schedule.step(4, 5.0), schedule.step(5, 5.0)] == pytest.approx([0.1, 0.01])


def test_manual() -> None:
    schedule = make("manual", epoch2lr="{'1-2': 0.4, '4,5': 0.2}", update2lr='{"10": 0.3, "20": 0.05}')
    assert schedule.optimizer.get_lr() == 0.4 and schedule.state_dict() == {"lr": 0.4}
    assert [schedule.step_begin_epoch(epoch) for epoch in (1, 2, 3, 4, 9)] == [0.4, 0.4, 0.4, 0.2, 0.2]
    assert [schedule.step_update(n) for n in (0, 9, 10, 19, 20)] == [0.2, 0.2, 0.3, 0.3, 0.05]
    assert make("manual", lr=0.7, update2lr="{5: 0.1}").step_begin_epoch(1) == 0.7
    assert read_table({1: 0.1, "3 - 4": 1e-3}, "epoch2lr") == {1: 0.1, 3: 1e-3, 4: 1e-3}
    for text in ("{'a': 0.1}", "[0.1]", "{'1': 'x'}", "{'1': -0.1}", "oops"):
        with pytest.raises(ConfigError, match="epoch2lr"):
            make("manual", epoch2lr=text)


def test_pass_through_hands_on_to_the_optimizers_own_schedule() -> None:
    optimizer: Any = build_optimizer(SGDConfig(_name="sgd", lr=[0.1]), [torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="pass_through schedule is for optimizers of plugins"):
        build_lr_scheduler(SimpleNamespace(_name="pass_through"), optimizer)
    calls: list[Any] = []
    optimizer.lr_scheduler = SimpleNamespace(
        state_dict=lambda: {"mine": 1},
        load_state_dict=calls.append,
        step_begin_epoch=lambda epoch: calls.append(epoch),
        step_update=lambda n: n / 10,
    )
    schedule = build_lr_scheduler(SimpleNamespace(_name="pass_through"), optimizer)
    schedule.load_state_dict(schedule.state_dict())
    schedule.step_begin_epoch(3)
    assert calls == [{"mine": 1}, 3] and schedule.step_update(5) == 0.5


def test_the_decay_period_has_two_spellings() -> None:
    words = "data-bin --arch roberta_base --lr 0.1 --lr-scheduler step --lr-decay-period 7".split()
    by_flags = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), words))
    by_yaml = build_config({"lr_scheduler": {"_name": "step", "lr_decay_period": 7}, "model": "roberta_base"})
    assert by_flags.lr_scheduler.lr_deacy_period == by_yaml.lr_scheduler.lr_deacy_period == 7


CHOICES: dict[str, dict[str, Any]] = {
    "adadelta": {"adadelta_rho": 0.8, "adadelta_eps": 1e-5, "weight_decay": 0.1, "anneal_eps": True},
    "adafactor": {"adafactor_eps": "(1e-30, 1e-2)", "clip_threshold": 2.0, "decay_rate": -0.5, "beta1": 0.9},
    "adamax": {"adamax_betas": "(0.8, 0.9)", "adamax_eps": 1e-5, "no_bias_correction": True},
    "lamb": {"lamb_betas": "(0.8, 0.9)", "lamb_eps": 1e-5, "weight_decay": 0.1},
    "nag": {"momentum": 0.5, "weight_decay": 0.1},
    "triangular": {"max_lr": 0.5, "lr_period_updates": 100.0, "lr_shrink": 0.5, "shrink_min": True},
    "reduce_lr_on_plateau": {"lr_shrink": 0.5, "lr_threshold": 0.01, "lr_patience": 2, "warmup_updates": 3},
    "step": {"warmup_updates": 3, "min_lr": 0.01, "lr_deacy_period": 7, "lr_decay": 0.9},
    "manual": {"epoch2lr": "{'1': 0.3}", "update2lr": "{'2': 0.2}"},
    "pass_through": {},
}


@pytest.mark.parametrize("name", CHOICES)
def test_flags_and_yaml_mean_the_same(name: str) -> None:
    group = "lr_scheduler" if name in LR_SCHEDULERS else "optimizer"
    words = ["data-bin", "--arch", "roberta_base", "--lr", "0.1", f"--{group.replace('_', '-')}", name]
    for key, value in CHOICES[name].items():
        words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    by_flags = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), words))
    node = {"_name": name, **CHOICES[name]}
    by_yaml = build_config({"optimization": {"lr": [0.1]}, group: node, "model": "roberta_base", "task": "masked_lm"})
    assert by_flags[group] == by_yaml[group]
    assert {key: by_yaml[group][key] for key in CHOICES[name]} == CHOICES[name]
