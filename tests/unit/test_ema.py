"""The exponential moving average of the weights."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim.ema import EMA


@dataclass
class Config:
    ema_decay: float = 0.9
    ema_start_update: int = 0
    ema_fp32: bool = False
    ema_seed_model: str | None = None
    ema_update_freq: int = 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.layer.weight
        self.register_buffer("version", torch.ones(1))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("running", torch.zeros(2))


def moved(model: nn.Module, by: float = 1.0) -> nn.Module:
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict().values()}.values():
            tensor.add_(int(by) if not tensor.is_floating_point() else by)
    return model


def aged(average: torch.Tensor, value: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        average = 0.9 * average + 0.1 * value
    return average


def test_every_entry_but_version_follows() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    ema = EMA(model, Config())
    assert ema.get_decay() == 0.9 and ema.get_model() is ema.model and not ema.fp32_params
    assert not any(p.requires_grad for p in ema.model.parameters())
    with torch.no_grad():
        model.layer.weight.add_(1.0)
        model.running.add_(1.0)
        model.version.add_(1.0)
        model.count.add_(1)
    ema.step(model)
    state = ema.model.state_dict()
    for key, times in {"layer.bias": 1, "running": 1, "layer.weight": 2, "tied.weight": 2}.items():  # tied: once a name
        torch.testing.assert_close(state[key], aged(before[key], model.state_dict()[key], times))
    assert torch.equal(state["version"], before["version"]) and state["count"].item() == 1
    other = ema.reverse(Model())
    assert torch.equal(other.state_dict()["layer.weight"], state["layer.weight"])


def test_float32_copies_are_more_exact() -> None:
    model = Model().bfloat16()
    ema = EMA(model, Config(ema_decay=0.999, ema_fp32=True))
    exact = model.layer.weight.detach().float().clone()
    moved(model)
    for _ in range(20):
        ema.step(model)
        exact = 0.999 * exact + 0.001 * model.layer.weight.detach().float()
    assert "layer.weight" in ema.fp32_params and "tied.weight" in ema.fp32_params
    torch.testing.assert_close(ema.fp32_params["layer.weight"], exact)
    assert torch.equal(ema.fp32_params["layer.weight"], ema.fp32_params["tied.weight"])
    assert torch.equal(ema.model.layer.weight, ema.fp32_params["layer.weight"].bfloat16())


def test_start_and_frequency() -> None:
    model = Model()
    ema = EMA(model, Config(ema_start_update=2, ema_update_freq=2))
    moved(model)
    ema.step(model, updates=1)
    assert ema.get_decay() == 0 and not torch.equal(ema.model.layer.weight, model.layer.weight)
    ema.config.ema_start_update = 3
    ema.step(model, updates=2)
    assert torch.equal(ema.model.layer.weight, model.layer.weight)
    before = ema.model.layer.weight.clone()
    moved(model)
    ema.step(model, updates=3)
    assert torch.equal(ema.model.layer.weight, before) and ema.get_decay() == 0.9
    ema.step(model, updates=4)
    torch.testing.assert_close(ema.model.layer.weight, aged(before, model.layer.weight, 2))


def test_frequency_without_update_numbers() -> None:
    model = Model()
    ema = EMA(model, Config(ema_update_freq=3))
    moved(model)
    changed = []
    for _ in range(6):
        before = ema.model.running.clone()
        ema.step(model)
        changed.append(not torch.equal(before, ema.model.running))
    assert changed == [False, False, True, False, False, True]


@pytest.mark.parametrize("fp32", [False, True])
def test_resuming_is_exact(fp32: bool) -> None:
    model = Model().bfloat16()
    through = EMA(model, Config(ema_fp32=fp32))
    through.step(moved(model, 0.1), 1)
    saved = copy.deepcopy(through.extra_state())
    assert set(saved) == ({"ema", "ema_fp32_params"} if fp32 else {"ema"})
    resumed = EMA(Model().bfloat16(), Config(ema_fp32=fp32))
    resumed.resume(saved, model)
    moved(model, 0.1)
    for ema in (through, resumed):
        ema.step(model, 2)
    for key, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key])


def test_resuming_without_an_average_starts_one(caplog: pytest.LogCaptureFixture) -> None:
    ema = EMA(Model(), Config(ema_fp32=True))
    model = moved(Model())
    with caplog.at_level(logging.WARNING):
        ema.resume({}, model)
    assert "no EMA" in caplog.text
    assert torch.equal(ema.model.layer.weight, model.layer.weight)
    assert torch.equal(ema.fp32_params["layer.weight"], model.layer.weight)


def test_bad_input() -> None:
    model = Model()
    ema = EMA(model, Config())
    with pytest.raises(CheckpointError, match="layer.weight"):
        ema.resume({"ema": {"layer.weight": torch.zeros(2, 2)}}, model)
    with pytest.raises(ConfigError, match="ema_fp32"):
        ema.build_fp32_params()
    with pytest.raises(ConfigError, match="seed.pt"):
        EMA(model, Config(ema_seed_model="seed.pt"))
    seeded = EMA(model, Config(ema_seed_model="seed.pt"), seed_state=moved(Model()).state_dict())
    assert seeded.model.version.item() == 2.0
