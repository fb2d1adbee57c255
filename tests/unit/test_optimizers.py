"""Building optimizers, the ones besides Adam, and what plugins may rely on."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from fairseq.errors import ConfigError
from fairseq.optim import FairseqOptimizer, LegacyFairseqOptimizer, build_optimizer, register_optimizer
from fairseq.optim.configs import AdamWConfig, SGDConfig
from fairseq.optim.fairseq_optimizer import BLOCK, clip_coefficient, total_norm


def test_adamw_is_torchs_with_two_groups() -> None:
    torch.manual_seed(0)
    names = ["encoder.fc1.weight", "encoder.fc1.bias", "encoder.layer_norm.weight"]
    ours = [(name, Parameter(torch.randn(3, 4))) for name in names]
    theirs = [Parameter(param.detach().clone()) for _, param in ours]
    optimizer = build_optimizer(
        AdamWConfig(_name="adamw", lr=[0.1], adam_betas="(0.8, 0.9)", adam_eps=1e-3, weight_decay=0.3), ours
    )
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.3}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
    )
    for _ in range(3):
        for (_, a), b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(3, 4)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for (_, a), b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]
    with pytest.raises(ConfigError, match="names"):
        build_optimizer(AdamWConfig(_name="adamw", lr=[0.1]), [Parameter(torch.zeros(1))])
    everything = build_optimizer(AdamWConfig(_name="adamw", lr=[0.1], no_decay=""), [Parameter(torch.zeros(1))])
    assert len(everything.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01)),
        ("adagrad", lambda params: torch.optim.Adagrad(params, lr=0.1, weight_decay=0.01)),
    ],
)
def test_torch_optimizers(name: str, reference: Any) -> None:
    a, b = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    optimizer, expected = (
        build_optimizer(SimpleNamespace(_name=name, lr=[0.1], momentum=0.9, weight_decay=0.01), [a]),
        reference([b]),
    )
    for step in range(3):
        a.grad, b.grad = torch.arange(4.0) + step, (torch.arange(4.0) + step) / 2
        optimizer.multiply_grads(0.5)
        optimizer.step()
        expected.step()
    assert torch.equal(a, b)
    assert type(optimizer).__name__ == {"sgd": "SGD", "adagrad": "Adagrad"}[name]
    optimizer.set_lr(0.25)
    assert optimizer.get_lr() == 0.25
    optimizer.load_state_dict(optimizer.state_dict(), {"lr": 0.5})
    assert optimizer.get_lr() == 0.5


def test_what_is_built() -> None:
    trained, frozen = Parameter(torch.zeros(2)), Parameter(torch.zeros(2), requires_grad=False)
    namespace = argparse.Namespace(
        optimizer="adam", lr=[0.1], adam_betas="(0.9, 0.98)", adam_eps=1e-8, weight_decay=0.0
    )
    optimizer = build_optimizer(namespace, [frozen, trained])
    assert list(optimizer.params) == [trained] and type(optimizer).__name__ == "FairseqAdam"
    assert list(build_optimizer(SGDConfig(_name="sgd", lr=[1.0]), [{"params": trained}]).params) == [trained]
    with pytest.raises(ConfigError, match="no parameter"):
        build_optimizer(namespace, [frozen])
    with pytest.raises(ConfigError, match="adam"):
        build_optimizer(SimpleNamespace(_name="adm"), [trained])
    with pytest.raises(ConfigError, match="--optimizer"):
        build_optimizer(SimpleNamespace(_name=None), [trained])


def test_plugins() -> None:
    @register_optimizer("test_legacy_optimizer")
    class Mine(LegacyFairseqOptimizer):
        def __init__(self, args: Any, params: Any) -> None:
            super().__init__(args)
            self._optimizer = torch.optim.SGD(params, lr=self.args.lr[0])

    param = Parameter(torch.ones(2))
    optimizer = build_optimizer(SimpleNamespace(_name="test_legacy_optimizer", lr=[0.5]), [param])
    param.grad = torch.tensor([3.0, 4.0])
    assert optimizer.clip_grad_norm(1.0).item() == 5.0
    torch.testing.assert_close(param.grad, torch.tensor([0.6, 0.8]))
    optimizer.multiply_grads(0.5)
    optimizer.step()
    torch.testing.assert_close(param, torch.tensor([0.85, 0.8]))
    assert optimizer.scaler is None and optimizer.master_weights() is None
    with pytest.raises(ValueError, match="FairseqOptimizer"):
        register_optimizer("test_not_an_optimizer")(int)
    with pytest.raises(TypeError, match="torch.optim.Optimizer"):
        _ = FairseqOptimizer(None).optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_total_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = [(), (0,), (3,), (BLOCK,), (BLOCK + 1,), (2, BLOCK * 9), (5, 7)]
    grads = [torch.randn(shape).to(dtype) for shape in shapes] + [torch.randn(7, 9).to(dtype).t()]
    exact = torch.cat([grad.reshape(-1).double() for grad in grads]).norm()
    norm = total_norm(grads)
    assert norm.dtype == torch.float32 and norm.dim() == 0
    assert norm.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.equal(total_norm(grads), norm)
    assert total_norm([]).item() == 0.0
    assert torch.isnan(total_norm([torch.tensor([1.0, float("nan")])]))
    assert torch.isinf(total_norm([torch.tensor([1.0, float("-inf")])]))


def test_clip_coefficient() -> None:
    assert clip_coefficient(torch.tensor(0.5), 1.0) == 1.0
    assert clip_coefficient(torch.tensor(4.0), 1.0) == pytest.approx(1 / (4 + 1e-6))
    assert clip_coefficient(torch.tensor(0.0), 1.0) == 1.0
