"""Tags of parameters: what they change, that schedules keep ratios, and that states of any grouping load."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim import build_optimizer, precision
from fairseq.optim.configs import PolynomialDecayLRScheduleConfig
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.optim.parameter_groups import freeze, scale_rates
from tests.unit.test_precision import Tied, root, train

MODES = [
    ("fp32", {}),
    ("bf16", {}),
    ("fp16", {}),
    ("fp16", {"fp16_no_flatten_grads": True}),
    ("bf16", {"memory_efficient_bf16": True}),
    ("amp", {}),
]


def tagged(model: nn.Module, **tags: dict[str, Any]) -> nn.Module:
    """``dense_weight={"lr_scale": 0.5}`` and so on."""
    for name, own in tags.items():
        for tag, value in own.items():
            setattr(model.get_parameter(name.replace("_", ".")), tag, value)
    return model


def tied(tags: bool = True) -> nn.Module:
    """Three parameters; the first and the last want something of their own, so that groups have another order."""
    own: dict[str, dict[str, Any]] = {"embed_weight": {"lr_scale": 0.25}, "dense_bias": {"no_decay": True}}
    return tagged(Tied(), **own) if tags else Tied()


def setup(mode: str, optimizer: str = "adam", tags: bool = True, **common: Any) -> tuple[nn.Module, FairseqOptimizer]:
    model = precision.cast_model(tied(tags), mode)
    flags = {mode: True} if mode != "fp32" else {}
    return model, precision.build(mode, root(optimizer, **{**flags, **common}), list(model.named_parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_weight_decay_hits_what_wants_it(name: str) -> None:
    """A zero gradient moves a weight by its decay alone: 1 - lr * decay (Adagrad: a step of the sign, lr)."""
    model: dict[str, Any] = {key: nn.Parameter(torch.ones(2)) for key in ("plain", "free", "strong", "slow", "bias")}
    model["free"].no_decay = True
    model["strong"].weight_decay = 0.5
    model["slow"].lr_scale = 0.5
    cfg = root(name).optimizer
    cfg.lr, cfg.weight_decay = [0.1], 0.2
    optimizer = build_optimizer(cfg, model.items())
    for param in model.values():
        param.grad = torch.zeros(2)
    optimizer.step()
    expected = {"plain": 1 - 0.1 * 0.2, "free": 1.0, "strong": 1 - 0.1 * 0.5, "slow": 1 - 0.05 * 0.2, "bias": 0.98}
    if name == "adagrad":
        expected = {"plain": 0.9, "free": 1.0, "strong": 0.9, "slow": 0.95, "bias": 0.9}
    if name == "adamw":
        expected["bias"] = 1.0  # by its name
    for key, value in expected.items():
        torch.testing.assert_close(model[key].detach(), torch.full((2,), value), msg=key)
    own = [
        {key: group[key] for key in ("lr_scale", "weight_decay") if key in group} for group in optimizer.param_groups
    ]
    assert own == [
        {"weight_decay": 0.2},
        {"weight_decay": 0.0},
        {"weight_decay": 0.5},
        {"lr_scale": 0.5, "weight_decay": 0.2},
    ]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_factor_is_that_of_the_learning_rate(name: str) -> None:
    """The group of lr_scale 0.25 moves as under an optimizer with a quarter of the learning rate."""
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(one.state_dict())
    tagged(one, weight={"lr_scale": 0.25}, bias={"lr_scale": 0.25})
    slow = root(name).optimizer
    slow.lr = [slow.lr[0] * 0.25]
    first, second = (
        build_optimizer(root(name).optimizer, one.named_parameters()),
        build_optimizer(slow, other.parameters()),
    )
    for step in range(3):
        for model, optimizer in ((one, first), (other, second)):
            optimizer.zero_grad()
            model(torch.full((2, 4), float(step + 1))).pow(2).sum().backward()
            optimizer.step()
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert first.get_lr() == 0.01


@pytest.mark.parametrize(("mode", "common"), MODES)
def test_ratios_are_kept_through_a_schedule(mode: str, common: dict[str, Any]) -> None:
    _, optimizer = setup(mode, **common)
    cfg = PolynomialDecayLRScheduleConfig(
        _name="polynomial_decay", lr=[0.4], warmup_updates=2, total_num_update=10, end_learning_rate=0.01
    )
    schedule = build_lr_scheduler(cfg, getattr(optimizer, "fp32_optimizer", optimizer))
    for update in range(12):
        lr = schedule.step_update(update)
        assert optimizer.get_lr() == lr
        assert [group["lr"] for group in optimizer.param_groups] == [lr, 0.25 * lr, lr]


def test_without_tags_there_is_one_group() -> None:
    model = tagged(Tied(), dense_bias={"lr_scale": 1.0, "no_decay": False})
    optimizer = build_optimizer(root().optimizer, model.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]
    assert list(optimizer.param_groups[0]) == ["params", "lr", "betas", "eps", "weight_decay", "amsgrad"]
    _, flat = setup("fp16", tags=False)
    _, split = setup("fp16")
    assert isinstance(flat, FP16Optimizer) and isinstance(flat.fp32_params, dict)
    assert isinstance(split, FP16Optimizer) and len(split.fp32_params) == 3


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("mode", "common"), MODES)
def test_resuming_is_exact(mode: str, common: dict[str, Any], name: str) -> None:
    if name == "sgd" and "memory_efficient_bf16" in common:
        pytest.skip("needs masters")
    model, through = setup(mode, name, **common)
    train(model, through, mode, range(3))
    weights = copy.deepcopy(precision.full_precision_state(model, through))
    saved = copy.deepcopy(through.state_dict())
    assert [group.get("lr_scale") for group in saved["param_groups"]] == [None, 0.25, None]
    expected = train(model, through, mode, range(3, 7))
    other, resumed = setup(mode, name, **common)
    other.load_state_dict({key: value.clone() for key, value in weights.items()})
    precision.restore_masters(resumed, weights)
    resumed.load_state_dict(saved)
    assert resumed.get_lr() == 0.01
    assert train(other, resumed, mode, range(3, 7)) == expected
    for key, value in precision.full_precision_state(model, through).items():
        assert torch.equal(value, precision.full_precision_state(other, resumed)[key])


@pytest.mark.parametrize(("mode", "common"), [("fp32", {}), ("bf16", {}), ("fp16", {})])
def test_a_state_of_one_group_is_distributed(mode: str, common: dict[str, Any]) -> None:
    """Of the same parameters in model order, or of one flat vector of them (fp16)."""
    model, plain = setup(mode, tags=False, **common)
    train(model, plain, mode, range(2))
    plain.set_lr(0.08)
    state = copy.deepcopy(plain.state_dict())
    other, optimizer = setup(mode, **common)
    optimizer.load_state_dict(state, {"eps": 0.5})
    masters = optimizer.master_weights() or dict(other.named_parameters())
    sizes = {name: masters[name].numel() for name in ("embed.weight", "dense.weight", "dense.bias")}
    entries = state["state"]
    flat = torch.cat([entries[i]["exp_avg"].reshape(-1) for i in entries])
    names = {id(param): name for name, param in _inner_parameters(other, optimizer)}
    found = {names[id(p)]: entry["exp_avg"].reshape(-1) for p, entry in optimizer.optimizer.state.items()}
    assert torch.equal(torch.cat([found[name] for name in sizes]), flat)
    assert [group["lr"] for group in optimizer.param_groups] == [0.08, 0.02, 0.08]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0]
    assert [group["eps"] for group in optimizer.param_groups] == [0.5] * 3
    with pytest.raises(CheckpointError, match="reset-optimizer"):
        optimizer.load_state_dict({**state, "param_groups": [{**state["param_groups"][0], "params": list(range(5))}]})


def _inner_parameters(model: nn.Module, optimizer: FairseqOptimizer) -> list[tuple[str, torch.Tensor]]:
    if isinstance(optimizer, FP16Optimizer):
        return list(zip((name for name, _ in optimizer.named_params), optimizer.fp32_params, strict=True))
    return list(model.named_parameters())


def test_overrides_leave_what_parameters_ask_for() -> None:
    _, optimizer = setup("fp32")
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()), {"lr": 0.4, "weight_decay": 0.3})
    assert [group["lr"] for group in optimizer.param_groups] == [0.4, 0.1, 0.4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


@pytest.mark.parametrize(
    "tags",
    [
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"weight_decay": "0.1"},
        {"lr_scale": 0.0},
        {"lr_scale": -1.0},
        {"lr_scale": float("inf")},
        {"lr_scale": "x"},
        {"no_decay": True, "weight_decay": 0.1},
    ],
)
def test_tags_that_make_no_sense(tags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dense\.bias"):
        build_optimizer(SimpleNamespace(_name="sgd", lr=[0.1]), tagged(Tied(), dense_bias=tags).named_parameters())


def test_freezing_and_rates_by_name() -> None:
    model = Tied()
    model.get_parameter("dense.bias").lr_scale = 0.5  # type: ignore[attr-defined]
    named = list(model.named_parameters())
    freeze(named, "embed, ")
    scale_rates(named, "dense=0.1,dense.bias=0.5")
    assert not model.embed.weight.requires_grad and model.dense.weight.requires_grad
    assert [getattr(parameter, "lr_scale", None) for _, parameter in named] == [None, None, 0.1, 0.25]
    freeze(named, "")
    scale_rates(named, "")
    for wrong, words in (("other", "freeze: no parameter has 'other' in its name"),):
        with pytest.raises(ConfigError, match=words):
            freeze(named, wrong)
    for wrong, words in (
        ("other=2", "lr_scales: no parameter has 'other'"),
        ("dense", "pieces of names with factors above 0.*'dense'"),
        ("dense=0", "above 0"),
        ("=1", "above 0"),
        ("dense=x", "above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            scale_rates(named, wrong)
