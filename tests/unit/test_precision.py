"""Precision modes on the CPU: which one is chosen, masters, scaling, overflow, checkpoints and exact resuming."""

from __future__ import annotations

import copy
import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim import precision
from fairseq.optim.amp_optimizer import AMPOptimizer, build_amp_scaler
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer

DEFAULTS: dict[str, Any] = {
    "fp16": False,
    "bf16": False,
    "amp": False,
    "memory_efficient_fp16": False,
    "memory_efficient_bf16": False,
    "fp16_init_scale": 128,
    "fp16_scale_window": None,
    "fp16_scale_tolerance": 0.0,
    "fp16_no_flatten_grads": False,
    "threshold_loss_scale": None,
    "min_loss_scale": 1e-4,
    "amp_init_scale": 64,
    "amp_scale_window": 2,
}


def root(optimizer: str = "adam", **common: Any) -> SimpleNamespace:
    no_decay = "bias" if optimizer == "adamw" else ""
    return SimpleNamespace(
        common=SimpleNamespace(**{**DEFAULTS, **common}),
        optimizer=SimpleNamespace(
            _name=optimizer, lr=[0.01], adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=0.01, no_decay=no_decay
        ),
        optimization=SimpleNamespace(update_freq=[2], batches_per_update=0),
        distributed_training=SimpleNamespace(distributed_world_size=1),
    )


class Tied(nn.Module):
    """Two names for one matrix, a buffer, and a frozen parameter, as in a masked LM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Linear(8, 6, bias=False)
        self.dense = nn.Linear(6, 6)
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("version", torch.full((1,), 3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.dense(self.embed(x))) @ self.head.weight).float().pow(2).mean()


def setup(mode: str, optimizer: str = "adam", **common: Any) -> tuple[Tied, FairseqOptimizer]:
    model = precision.cast_model(Tied(), mode)
    flags = {mode: True} if mode != "fp32" else {}
    return model, precision.build(mode, root(optimizer, **{**flags, **common}), list(model.named_parameters()))


def train(model: nn.Module, optimizer: FairseqOptimizer, mode: str, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        with optimizer.autocast():
            loss = model(precision.cast_sample({"x": [x]}, mode)["x"][0])
        optimizer.backward(loss)
        optimizer.multiply_grads(0.5)
        optimizer.clip_grad_norm(0.1)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_resolve(caplog: pytest.LogCaptureFixture) -> None:
    def mode(device: str = "cpu", **common: Any) -> str:
        return precision.resolve(root(**common).common, device)

    assert mode() == "fp32"
    assert mode(bf16=True) == mode(memory_efficient_bf16=True) == "bf16"
    assert mode(amp=True) == "amp"
    assert mode("cuda", fp16=True) == mode("cuda:1", memory_efficient_fp16=True) == "fp16"
    precision.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert mode(fp16=True) == mode(fp16=True) == "fp32"
    assert len(caplog.records) == 1 and "CUDA" in caplog.text
    for pair in ({"fp16": True, "amp": True}, {"fp16": True, "memory_efficient_bf16": True}):
        with pytest.raises(ConfigError, match="exclude"):
            mode("cuda", **pair)


def test_cast_sample() -> None:
    sample = {"net": {"ids": torch.arange(3), "x": torch.ones(2)}, "list": [torch.ones(1), None, ("a", torch.ones(1))]}
    cast = precision.cast_sample(sample, "bf16")
    assert cast["net"]["x"].dtype == cast["list"][2][1].dtype == torch.bfloat16
    assert cast["net"]["ids"].dtype == torch.int64 and cast["list"][1] is None
    assert precision.cast_sample(sample, "fp32") is sample


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_half_precision_follows_float32(mode: str) -> None:
    exact, plain = setup("fp32")
    model, optimizer = setup(mode)
    assert model.dense.weight.dtype != torch.float32 and isinstance(optimizer, FP16Optimizer)
    # Weights start rounded; what matters is that training then moves the masters as float32 training does.
    exact.load_state_dict(precision.full_precision_state(model, optimizer))
    losses, expected = train(model, optimizer, mode, range(8)), train(exact, plain, "fp32", range(8))
    assert losses == pytest.approx(expected, rel=0.05)
    masters = optimizer.master_weights()
    assert masters is not None and set(masters) == {"embed.weight", "dense.weight", "dense.bias"}
    for name, value in masters.items():
        assert value.dtype == torch.float32
        parameter = model.get_parameter(name)
        assert torch.equal(parameter, value.to(parameter.dtype))
        torch.testing.assert_close(value, exact.get_parameter(name), atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("mode", "optimizer", "common"),
    [
        ("fp32", "adam", {}),
        ("fp32", "adamw", {}),
        ("bf16", "adam", {}),
        ("bf16", "adamw", {}),
        ("bf16", "sgd", {}),
        ("bf16", "adam", {"memory_efficient_bf16": True}),
        ("fp16", "adam", {}),
        ("fp16", "adamw", {}),
        ("fp16", "adagrad", {}),
        ("fp16", "sgd", {"fp16_scale_window": 3}),
        ("fp16", "adam", {"fp16_no_flatten_grads": True, "fp16_scale_window": 2}),
        ("amp", "adam", {}),
    ],
)
def test_resuming_is_exact(mode: str, optimizer: str, common: dict[str, Any]) -> None:
    model, through = setup(mode, optimizer, **common)
    train(model, through, mode, range(3))
    buffer = io.BytesIO()
    state = precision.full_precision_state(model, through)
    assert all(value.dtype == torch.float32 for value in state.values())
    assert list(state) == list(model.state_dict())
    torch.save((state, through.state_dict()), buffer)
    expected = train(model, through, mode, range(3, 7))

    buffer.seek(0)
    weights, saved = torch.load(buffer, weights_only=True)
    other, resumed = setup(mode, optimizer, **common)
    other.load_state_dict(weights)
    precision.restore_masters(resumed, weights)
    resumed.load_state_dict(saved)
    assert train(other, resumed, mode, range(3, 7)) == expected
    for key, value in precision.full_precision_state(model, through).items():
        assert torch.equal(value, precision.full_precision_state(other, resumed)[key])


def test_flat_layout_and_conversion_between_modes() -> None:
    model, flat = setup("fp16")
    train(model, flat, "fp16", range(2))
    state = flat.state_dict()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert list(state["state"]) == [0] and state["state"][0]["exp_avg"].shape == (count,)
    assert state["loss_scale"] == 128.0
    for mode in ("fp32", "bf16"):
        other, split = setup(mode)
        split.load_state_dict(copy.deepcopy(state))
        parts = split.state_dict()["state"]
        assert torch.equal(torch.cat([parts[i]["exp_avg"].reshape(-1) for i in range(3)]), state["state"][0]["exp_avg"])
        _, back = setup("fp16")
        back.load_state_dict(copy.deepcopy(split.state_dict()))
        assert torch.equal(back.state_dict()["state"][0]["exp_avg_sq"], state["state"][0]["exp_avg_sq"])
    assert precision.accepts_state_of(split, "FairseqAdam") and precision.accepts_state_of(split, "FP16Optimizer")
    assert not precision.accepts_state_of(split, "SGD")


@pytest.mark.parametrize("flat", [True, False])
def test_one_step_of_float16(flat: bool) -> None:
    """The original's own example: x = 2, target 5; weight 3, bias 5 move by the learning rate, 0.1."""
    model = nn.Linear(1, 1)
    model.weight.data.fill_(3.0)
    model.bias.data.fill_(5.0)
    model = model.half()
    cfg = root(fp16_init_scale=1, fp16_scale_window=1, fp16_scale_tolerance=1, threshold_loss_scale=1)
    cfg.common.fp16_no_flatten_grads = not flat
    cfg.optimizer = SimpleNamespace(_name="adam", lr=[0.1], adam_betas="(0.9, 0.999)", adam_eps=1e-8, weight_decay=0.0)
    optimizer = FP16Optimizer.build_optimizer(cfg, list(model.parameters()))
    optimizer.zero_grad()
    loss = (model(torch.tensor([2.0]).half()) - 12.0).abs().sum()
    optimizer.backward(loss)
    assert optimizer.clip_grad_norm(0).item() == pytest.approx(2.2361, abs=1e-4)
    optimizer.step()
    assert model.weight.item() == pytest.approx(3.0996, abs=1e-3) and model.bias.item() == pytest.approx(
        5.1016, abs=1e-3
    )
    assert optimizer.scaler is not None and optimizer.scaler.loss_scale == 2.0
    masters = optimizer.fp32_params.values() if isinstance(optimizer.fp32_params, dict) else optimizer.fp32_params
    values = torch.cat([master.detach().reshape(-1) for master in masters])
    torch.testing.assert_close(values, torch.tensor([3.1, 5.1]))


def test_memory_efficient_state_stays_float32() -> None:
    model = nn.Linear(5, 5).half()
    optimizer = MemoryEfficientFP16Optimizer.build_optimizer(root(memory_efficient_fp16=True), model.parameters())
    optimizer.zero_grad()
    optimizer.backward(model(torch.rand(2, 5).half()).sum())
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for param, entry in optimizer.optimizer.state.items():
        assert param.dtype == torch.float16
        assert entry["exp_avg"].dtype == entry["exp_avg_sq"].dtype == torch.float32
    with pytest.raises(ConfigError, match="masters"):
        MemoryEfficientFP16Optimizer.build_optimizer(root("sgd", memory_efficient_fp16=True), model.parameters())


def test_overflow_skips_the_update_and_halves_the_scale() -> None:
    model, optimizer = setup("fp16")
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    optimizer.backward(model(torch.full((4, 8), 1.0).half()))
    model.dense.bias.grad[0] = float("inf")
    with pytest.raises(OverflowError):
        optimizer.clip_grad_norm(1.0)
    assert optimizer.scaler.loss_scale == 64.0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    train(model, optimizer, "fp16", range(1))  # zero_grad starts afresh with the new scale


def test_loss_scale_does_not_change_the_norm_and_clipping_has_no_epsilon() -> None:
    norms = []
    for scale in (1, 1024):
        model, optimizer = setup("fp16", fp16_init_scale=scale)
        optimizer.zero_grad()
        optimizer.backward(model(torch.full((4, 8), 0.5).half()))
        optimizer.multiply_grads(torch.tensor(2.0))
        norms.append(optimizer.clip_grad_norm(1e-3).item())
        assert optimizer._factor * scale * norms[-1] / 2.0 == pytest.approx(1e-3, rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=0.01)


def test_scale_window() -> None:
    cfg = root(fp16=True)
    _, optimizer = setup("fp16")
    assert optimizer.scaler.scale_window == 2**13  # 2^14 / 1 worker / update_freq 2
    cfg.optimization.update_freq = [1, 2]
    with pytest.raises(ConfigError, match="fp16_scale_window"):
        FP16Optimizer.build_optimizer(cfg, Tied().half().named_parameters())
    assert setup("bf16")[1].scaler is None


def test_masters_need_every_parameter() -> None:
    _, optimizer = setup("bf16")
    weights = dict(optimizer.master_weights() or {})
    with pytest.raises(CheckpointError, match="dense.bias"):
        optimizer.load_master_weights({key: value for key, value in weights.items() if key != "dense.bias"})
    model, other = setup("bf16")
    nearly = {key: value + 1.0 for key, value in weights.items()} | {"dense.bias": model.dense.bias.float() + 1e-6}
    precision.restore_masters(other, nearly)  # only what rounds to the model's own values is taken
    masters = other.master_weights() or {}
    assert torch.equal(masters["dense.bias"], nearly["dense.bias"])
    assert torch.equal(masters["embed.weight"], model.embed.weight.float())
    plain = setup("fp32")[1]
    assert plain.master_weights() is None and plain.scaler is None
    precision.restore_masters(plain, {})


def test_amp_on_the_cpu_computes_in_bfloat16() -> None:
    model, optimizer = setup("amp")
    assert isinstance(optimizer, AMPOptimizer) and optimizer.scaler is None
    with optimizer.autocast():
        assert model.dense(torch.ones(1, 6)).dtype == torch.bfloat16
    assert model.dense(torch.ones(1, 6)).dtype == torch.float32


def test_amp_loss_scale() -> None:
    model, optimizer = setup("amp")
    cfg = root(amp=True)
    optimizer.scaler = build_amp_scaler(cfg.common, "cpu")  # what CUDA runs use
    plain_model, plain = setup("amp")
    for _ in range(2):
        assert train(model, optimizer, "amp", range(1)) == train(plain_model, plain, "amp", range(1))
    assert optimizer.scaler.loss_scale == 128.0  # 64 doubled after the window of 2
    resumed = setup("amp")[1]
    resumed.scaler = build_amp_scaler(cfg.common, "cpu")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.scaler.state_dict() == optimizer.scaler.state_dict()

    before = copy.deepcopy(model.state_dict())
    for expected in (64.0, 32.0):
        optimizer.zero_grad()
        optimizer.backward(model(torch.ones(4, 8)) * float("inf"))
        with pytest.raises(OverflowError):
            optimizer.clip_grad_norm(1.0)
        assert optimizer.scaler.loss_scale == expected
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    optimizer.scaler.min_loss_scale = 16.0
    optimizer.zero_grad()
    optimizer.backward(model(torch.ones(4, 8)) * float("nan"))
    with pytest.raises(FloatingPointError, match="exploding"):
        optimizer.clip_grad_norm(1.0)


def test_amp_dtype_chooses_type_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(device: str, **common: Any) -> AMPOptimizer:
        model = Tied()
        return AMPOptimizer.build_optimizer(
            root(amp=True, **common), list(model.named_parameters()), device_type=device
        )

    monkeypatch.setattr("fairseq.optim.amp_optimizer.build_amp_scaler", lambda common, device: "scaler")
    original, wide = wrapped("cuda"), wrapped("cuda", amp_dtype="bf16")
    assert (original.dtype, original.scaler) == (torch.float16, "scaler")
    assert (wide.dtype, wide.scaler) == (torch.bfloat16, None)
    for amp_dtype in ("fp16", "bf16"):
        on_cpu = wrapped("cpu", amp_dtype=amp_dtype)
        assert (on_cpu.dtype, on_cpu.scaler) == (torch.bfloat16, None)
        with on_cpu.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("wanted", [False, True])
def test_tf32_is_on_within_a_run_and_as_before_after_it(wanted: bool) -> None:
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    with pytest.raises(RuntimeError, match="end of the run"), precision.tf32(wanted):
        assert [switch.allow_tf32 for switch in switches] == ([True, True] if wanted else before)
        raise RuntimeError("end of the run")
    assert [switch.allow_tf32 for switch in switches] == before
