"""Sparse updates (``fff_sparse_update``) against the formula applied to visited rows alone, in every precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fairseq.modules.fff import FastFeedForward
from fairseq.ops.fff import fff_routes
from fairseq.optim import adam_rows, build_optimizer, precision
from fairseq.optim.adam_update import Hyperparameters, Segment, reference_update, update
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from tests.unit.test_precision import root

SHAPES = [(9, 16), (9,), (9, 3, 5)]
MODES = [
    ("fp32", {}),
    ("bf16", {}),
    ("fp16", {}),
    ("bf16", {"memory_efficient_bf16": True}),
    ("amp", {}),
]


def settings(name: str, sparse: bool = True, **common: Any) -> Any:
    cfg = root(name, **common)
    cfg.optimizer.fff_sparse_update, cfg.optimizer.weight_decay = sparse, 0.1
    return cfg


def gradients(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """For `SHAPES`; about half of the rows are zeros, in each tensor others."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in SHAPES:
        visited = torch.rand(shape[0], generator=generator) < 0.5
        found.append(torch.randn(shape, generator=generator) * visited.view(-1, *[1] * (len(shape) - 1)))
    return [grad.to(dtype) for grad in found]


def start(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


class Masked:
    """Adam by the formula in float64; every row that has a gradient is updated on its own, at the count of all updates."""

    def __init__(self, weights: list[Tensor], corrected_eps: bool) -> None:
        self.weights = [weight.double().clone() for weight in weights]
        self.moments = [[torch.zeros_like(weight) for weight in self.weights] for _ in range(2)]
        self.count, self.corrected_eps = 0, corrected_eps

    def step(self, grads: list[Tensor], factor: float = 1.0) -> None:
        self.count += 1
        hyper = Hyperparameters(0.01, (0.9, 0.98), 1e-6, 0.1, self.count, self.corrected_eps)
        for columns in zip(self.weights, grads, *self.moments, strict=True):
            for row in range(len(columns[0])):
                weight, grad, *moments = (tensor[row : row + 1] for tensor in columns)
                if bool(grad.any()):
                    reference_update([weight], [grad.double()], *([moment] for moment in moments), hyper, factor)


def tagged(weights: list[Tensor]) -> list[tuple[str, Parameter]]:
    params = [Parameter(weight.clone()) for weight in weights]
    for param in params:
        param.sparse_rows = True  # type: ignore[attr-defined]
    return [(f"table{number}", param) for number, param in enumerate(params)]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_only_visited_rows_are_updated(name: str) -> None:
    named = tagged(start())
    optimizer = build_optimizer(settings(name).optimizer, named)
    wanted = Masked(start(), name == "adamw")
    for seed in range(5):
        grads = gradients(seed)
        for (_, param), grad in zip(named, grads, strict=True):
            param.grad = grad.clone()
        before = [param.detach().clone() for _, param in named]
        optimizer.multiply_grads(0.5)
        optimizer.step()
        wanted.step(grads, 0.5)
        for (_, param), old, grad in zip(named, before, grads, strict=True):
            kept = ~adam_rows.visited_rows(grad)
            assert 0 < int(kept.sum()) < len(kept)
            assert torch.equal(param[kept], old[kept])
    for number, (_, param) in enumerate(named):
        torch.testing.assert_close(param.detach().double(), wanted.weights[number], rtol=1e-5, atol=1e-6)
        state = optimizer.optimizer.state[param]
        assert state["step"] == 5
        for key, moments in zip(("exp_avg", "exp_avg_sq"), wanted.moments, strict=True):
            torch.testing.assert_close(state[key].double(), moments[number], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_dense_by_default_and_without_the_tag(name: str) -> None:
    """Rows without gradient decay and go on by their momentum, and the bits are those of an optimizer without the option."""

    def run(sparse: bool, tag: bool) -> list[Tensor]:
        named = tagged(start()) if tag else [(f"table{n}", Parameter(weight)) for n, weight in enumerate(start())]
        optimizer = build_optimizer(settings(name, sparse).optimizer, named)
        for seed in range(3):
            for (_, param), grad in zip(named, gradients(seed), strict=True):
                param.grad = grad
            optimizer.step()
        return [param.detach() for _, param in named]

    dense = run(False, False)
    assert all(map(torch.equal, dense, run(False, True)))
    assert all(map(torch.equal, dense, run(True, False)))
    assert not any(map(torch.equal, dense, run(True, True)))


@pytest.mark.parametrize("half", [False, True])
def test_all_ways_agree_with_the_dense_update(half: bool) -> None:
    """Copies of the visited rows, all but the others, and the choice by a mask, which is for other devices."""

    def segments() -> list[Segment]:
        masters, grads = start(), gradients(1, torch.bfloat16 if half else torch.float32)
        lows = [master.bfloat16() if half else None for master in masters]
        return [Segment(m, g, 0.1 * m, m.square(), low) for m, g, low in zip(masters, grads, lows, strict=True)]

    hyper = Hyperparameters(0.01, (0.9, 0.98), 1e-6, 0.1, 3)
    dense = segments()
    update(dense, hyper, 0.5)
    names = ("param", "exp_avg", "exp_avg_sq", *(["low_precision"] if half else []))
    for before, every, *ways in zip(segments(), dense, segments(), segments(), segments(), strict=True):
        visited = adam_rows.visited_rows(before.grad)
        adam_rows._update_copies(visited.nonzero().squeeze(1), ways[0], hyper, 0.5)
        adam_rows._update_but((~visited).nonzero().squeeze(1), ways[1], hyper, 0.5)
        adam_rows._update_where(visited, ways[2], hyper, 0.5)
        for name in names:
            old, wanted, *found = (getattr(segment, name) for segment in (before, every, *ways))
            for some in found:
                assert torch.equal(some[~visited], old[~visited])
                torch.testing.assert_close(some[visited], wanted[visited], rtol=1e-6, atol=1e-7)


# ---- the layer -------------------------------------------------------------------------------------------------------


def layer(mode: str, sparse: bool = True, **common: Any) -> tuple[FastFeedForward, FairseqOptimizer]:
    torch.manual_seed(1)
    model = precision.cast_model(FastFeedForward(8, depth=4), mode)
    flags = {mode: True} if mode != "fp32" else {}
    cfg = settings("adamw", sparse, **{**flags, **common})
    return model, precision.build(mode, cfg, list(model.named_parameters()))


def batch(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train(model: FastFeedForward, optimizer: FairseqOptimizer, steps: range, micro_batches: int = 2) -> None:
    for step in steps:
        optimizer.zero_grad()
        for micro in range(micro_batches):
            with optimizer.autocast():
                out = model(batch(10 * step + micro, model.weight_in.dtype))
            optimizer.backward(out.float().pow(2).sum())
        optimizer.multiply_grads(0.5)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()


@pytest.mark.parametrize(("mode", "common"), MODES, ids=str)
def test_union_of_the_micro_batches(mode: str, common: dict[str, Any]) -> None:
    """In every precision: a row is updated exactly when some token of some micro-batch went through its node."""
    model, optimizer = layer(mode, **common)
    for step in range(3):
        rows = torch.zeros(31, dtype=torch.bool)
        for micro in range(2):
            x = batch(10 * step + micro, model.weight_in.dtype)
            with optimizer.autocast():
                rows[fff_routes(x, model.weight_in, model.bias_in, 4).flatten()] = True
        masters = optimizer.master_weights() or dict(model.named_parameters())
        before = {key: value.detach().clone() for key, value in masters.items()}
        train(model, optimizer, range(step, step + 1))
        after = optimizer.master_weights() or dict(model.named_parameters())
        assert 5 <= int(rows.sum()) < 31
        for key in ("weight_in", "weight_out"):
            moved = (before[key] != after[key]).any(dim=1)
            assert torch.equal(moved, rows) or (mode == "bf16" and common and not bool((moved & ~rows).any()))
        assert not bool(((before["bias_in"] != after["bias_in"]) & ~rows).any())
    for key, master in (optimizer.master_weights() or {}).items():
        param = model.get_parameter(key)
        assert torch.equal(param, master.to(param.dtype))


@pytest.mark.parametrize(("mode", "common"), MODES, ids=str)
def test_resumed_to_the_last_bit(mode: str, common: dict[str, Any]) -> None:
    whole, optimizer = layer(mode, **common)
    train(whole, optimizer, range(4))
    first, optimizer = layer(mode, **common)
    train(first, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    weights = {key: value.clone() for key, value in precision.full_precision_state(first, optimizer).items()}
    again, optimizer = layer(mode, **common)
    again.load_state_dict(weights)
    precision.restore_masters(optimizer, weights)
    optimizer.load_state_dict(state)
    train(again, optimizer, range(2, 4))
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_a_flat_vector_of_float16_masters_has_no_rows() -> None:
    """Each parameter then gets a master of its own."""
    for sparse in (False, True):
        module = nn.Linear(3, 2).half()
        module.weight.sparse_rows = True  # type: ignore[assignment]
        optimizer = FP16Optimizer.build_optimizer(settings("adam", sparse, fp16=True), list(module.named_parameters()))
        assert len(list(optimizer.params)) == (2 if sparse else 1)
        before = module.weight.detach().clone()
        module.weight.grad = torch.tensor([[0.0] * 3, [1.0] * 3]).half()
        optimizer.step()
        assert torch.equal(module.weight[0], before[0]) == sparse
        assert not torch.equal(module.weight[1], before[1])
