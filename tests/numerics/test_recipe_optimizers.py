"""The optimizers of old recipes against small formulas and torch, their states, and low precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fairseq.dataclass.configs import CommonConfig
from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim import build_optimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.registry import OPTIMIZERS

SHAPES = [(5, 3), (3,), (2, 4, 3)]
RECIPES = ["adadelta", "adafactor", "adamax", "lamb", "nag"]
LRS = [0.1, 0.05, 0.2]


def config(name: str, **settings: Any) -> Any:
    settings.setdefault("lr", [LRS[0]])
    return OPTIMIZERS.config_class(name)(_name=name, **settings)  # type: ignore[misc]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def run(name: str, settings: dict[str, Any], steps: int = 3) -> list[Tensor]:
    """The weights after ``steps`` updates in float64 with a learning rate that changes."""
    params = [Parameter(w) for w in weights()]
    optimizer = build_optimizer(config(name, **settings), params)
    for step in range(steps):
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = grad
        optimizer.set_lr(LRS[step % len(LRS)])
        optimizer.step()
    return [param.detach() for param in params]


def formula(
    rule: Callable[[Tensor, Tensor, dict[str, Any], int, float, float], Tensor], steps: int = 3
) -> list[Tensor]:
    """The same with ``rule(w, g, state, t, lr, lr of the update before) -> w``, parameter by parameter."""
    ws: list[Tensor] = weights()
    states: list[dict[str, Any]] = [{} for _ in ws]
    before = LRS[0]
    for step in range(steps):
        lr = LRS[step % len(LRS)]
        ws = [rule(w, g, state, step + 1, lr, before) for w, g, state in zip(ws, gradients(step), states, strict=True)]
        before = lr
    return ws


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nag() -> None:
    def rule(w: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, before: float) -> Tensor:
        v, c, m = s.get("v", torch.zeros_like(w)), lr / before, 0.9
        w = (1 - lr * 0.1) * w + m * m * c * v - (1 + m) * lr * g
        s["v"] = m * c * v - lr * g
        return w

    assert_equal(run("nag", {"momentum": 0.9, "weight_decay": 0.1}), formula(rule))


@pytest.mark.parametrize("corrects", [True, False])
def test_adamax(corrects: bool) -> None:
    def rule(w: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, before: float) -> Tensor:
        s["m"] = 0.8 * s.get("m", 0) + 0.2 * g
        s["u"] = torch.maximum(0.9 * s.get("u", torch.zeros_like(g)), g.abs())
        size = lr / (1 - 0.8**t) if corrects else lr
        return w * (1 - lr * 0.1) - size * s["m"] / (s["u"] + 1e-3)

    settings = {"adamax_betas": "(0.8, 0.9)", "adamax_eps": 1e-3, "weight_decay": 0.1}
    assert_equal(run("adamax", {**settings, "no_bias_correction": not corrects}), formula(rule))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb(decay: float) -> None:
    norms = [math.sqrt(sum(float((g**2).sum()) for g in gradients(step))) for step in range(3)]

    def rule(w: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, before: float) -> Tensor:
        g = g / max(norms[t - 1], 1.0)
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.99 * s.get("v", 0) + 0.01 * g**2
        u = s["m"] / (1 - 0.9**t) / ((s["v"] / (1 - 0.99**t)).sqrt() + 1e-6) + decay * w
        return w - lr * (w.norm() / u.norm() if decay else 1.0) * u

    settings = {"lamb_betas": "(0.9, 0.99)", "lamb_eps": 1e-6, "weight_decay": decay}
    for a, b in zip(run("lamb", settings), formula(rule), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the norm of the gradients is float32


def test_lamb_leaves_zero_weights_a_ratio_of_one() -> None:
    param = Parameter(torch.zeros(3))
    optimizer = build_optimizer(config("lamb", weight_decay=0.1), [param])
    param.grad = torch.tensor([0.1, -0.1, 0.0])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([-0.1, 0.1, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("relative, scaled, warmup", [(False, False, False), (True, True, False), (True, True, True)])
def test_adafactor(beta1: float | None, relative: bool, scaled: bool, warmup: bool) -> None:
    def rms(x: Tensor) -> Tensor:
        return (x**2).mean().sqrt()

    def rule(w: Tensor, g: Tensor, s: dict[str, Any], t: int, lr: float, before: float) -> Tensor:
        if relative:
            lr = min(1e-6 * t if warmup else 0.01, t**-0.5)
        if scaled:
            lr = lr * max(1e-3, float(rms(w)))
        beta2, squares = 1 - t**-0.8, g**2 + 1e-30
        if g.dim() > 1:
            s["r"] = beta2 * s.get("r", 0) + (1 - beta2) * squares.mean(-1, keepdim=True)
            s["c"] = beta2 * s.get("c", 0) + (1 - beta2) * squares.mean(-2, keepdim=True)
            v = s["r"] * s["c"] / s["r"].mean(-2, keepdim=True)
        else:
            v = s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * squares
        u = g / v.sqrt()
        u = lr * u / max(1.0, float(rms(u)) / 0.5)
        if beta1 is not None:
            u = s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * u
        return w - 0.1 * lr * w - u

    settings = {"clip_threshold": 0.5, "weight_decay": 0.1, "beta1": beta1, "scale_parameter": scaled}
    assert_equal(run("adafactor", {**settings, "relative_step": relative, "warmup_init": warmup}), formula(rule))


def test_adafactors_scale_without_relative_step_is_the_originals(caplog: pytest.LogCaptureFixture) -> None:
    a, b = Parameter(torch.full((2,), 0.5)), Parameter(torch.full((2,), 0.25))
    optimizer = build_optimizer(config("adafactor", scale_parameter=True, lr=[0.1]), [a, b])
    assert "--relative-step" in caplog.text
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.5 - 0.1 * 0.5] * 2)
    assert b.tolist() == pytest.approx([0.25 - 0.1 * 0.5 * 0.25] * 2)


def test_adadelta_is_torchs() -> None:
    theirs = [Parameter(w) for w in weights()]
    reference = torch.optim.Adadelta(theirs, lr=LRS[0], rho=0.8, eps=1e-4, weight_decay=0.1)
    for step in range(3):
        for param, grad in zip(theirs, gradients(step), strict=True):
            param.grad = grad
        reference.param_groups[0]["lr"] = LRS[step]
        reference.step()
    found = run("adadelta", {"adadelta_rho": 0.8, "adadelta_eps": 1e-4, "weight_decay": 0.1})
    assert_equal(found, [param.detach() for param in theirs])


@pytest.mark.parametrize("name", RECIPES)
def test_a_stored_state_goes_on_exactly(name: str) -> None:
    settings = {"weight_decay": 0.01, **({"beta1": 0.9} if name == "adafactor" else {})}

    def steps(optimizer: Any, numbers: range) -> None:
        for step in numbers:
            for param, grad in zip(optimizer.params, gradients(step, torch.float32), strict=True):
                param.grad = grad
            optimizer.set_lr(LRS[step % 3])
            optimizer.step()

    params = [Parameter(w) for w in weights(torch.float32)]
    optimizer = build_optimizer(config(name, **settings), params)
    steps(optimizer, range(2))
    state, stored = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in params]
    steps(optimizer, range(2, 5))
    resumed = build_optimizer(config(name, **settings), [Parameter(w) for w in stored])
    resumed.load_state_dict(state)
    steps(resumed, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(params, resumed.params, strict=True))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_float32_masters_take_the_updates_of_float32(name: str, mode: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[mode]
    root = SimpleNamespace(
        common=CommonConfig(**{mode: True, "fp16_init_scale": 1, "fp16_scale_window": 100}),  # type: ignore[arg-type]
        optimizer=config(name, weight_decay=0.01),
        optimization=SimpleNamespace(update_freq=[1]),
        distributed_training=SimpleNamespace(distributed_world_size=1),
    )
    rounded = [w.to(dtype) for w in weights()]
    halves, plain = [Parameter(w.clone()) for w in rounded], [Parameter(w.float()) for w in rounded]
    low = FP16Optimizer.build_optimizer(root, [(f"p{i}", p) for i, p in enumerate(halves)])
    full = build_optimizer(root.optimizer, plain)
    for step in range(3):
        low.zero_grad()
        for half, param, grad in zip(halves, plain, gradients(step, dtype), strict=True):
            half.grad, param.grad = grad, grad.float()
        low.step()
        full.step()
    for (_, master), half, param in zip(low.master_weights().items(), halves, plain, strict=True):
        torch.testing.assert_close(master, param.detach())
        assert torch.equal(half, master.to(dtype))


@pytest.mark.parametrize("name", ["adafactor", "adamax", "lamb", "nag"])
def test_half_precision_without_masters_keeps_float32_states(name: str) -> None:
    root = SimpleNamespace(common=CommonConfig(bf16=True), optimizer=config(name))
    params = [Parameter(w.bfloat16()) for w in weights()]

    def build() -> Any:
        return MemoryEfficientFP16Optimizer.build_optimizer(root, [(f"p{i}", p) for i, p in enumerate(params)])

    optimizer = build()
    optimizer.zero_grad()
    for param, grad in zip(params, gradients(0, torch.bfloat16), strict=True):
        param.grad = grad
    optimizer.step()
    state = optimizer.state_dict()["state"]
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again = resumed.state_dict()["state"]
    tensors = [(i, key) for i in state for key, value in state[i].items() if torch.is_tensor(value)]
    assert tensors and all(state[i][key].dtype == torch.float32 for i, key in tensors)
    assert all(torch.equal(state[i][key], again[i][key]) and again[i][key].dtype == torch.float32 for i, key in tensors)


def test_what_is_refused() -> None:
    param = Parameter(torch.ones(2))
    with pytest.raises(ConfigError, match="warmup_init is a beginning of relative_step"):
        build_optimizer(config("adafactor", warmup_init=True), [param])
    with pytest.raises(ConfigError, match="adafactor_eps must be two numbers"):
        build_optimizer(config("adafactor", adafactor_eps="(1,)"), [param])
    with pytest.raises(ConfigError, match=r"lamb_betas must lie in \[0, 1\)"):
        build_optimizer(config("lamb", lamb_betas="(0.9, 1.0)"), [param])
    sgd = build_optimizer(config("sgd", momentum=0.9), [param])
    param.grad = torch.ones(2)
    sgd.step()
    for name in ("adamax", "adafactor"):
        with pytest.raises(CheckpointError, match="--reset-optimizer"):
            build_optimizer(config(name), [param]).load_state_dict(sgd.state_dict())
