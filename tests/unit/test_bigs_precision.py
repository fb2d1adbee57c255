"""The parameters of convolutions stay float32 in half-precision training: model, optimizer, averages, checkpoints."""

from __future__ import annotations

import argparse
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel
from fairseq.ops.ssm import ssm_conv
from fairseq.optim import precision
from fairseq.optim.ema import EMA
from fairseq.optim.fairseq_optimizer import total_norm
from tests.unit.roberta import SIZES, Task
from tests.unit.test_precision import root

IDS = torch.randint(4, 30, (2, 12), generator=torch.Generator().manual_seed(2))
MODES = {
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "fp16, not flat": {"fp16": True, "fp16_no_flatten_grads": True},
    "memory-efficient bf16": {"memory_efficient_bf16": True},
    "memory-efficient fp16": {"memory_efficient_fp16": True},
}


def model(seed: int = 1, **values: Any) -> RobertaModel:
    torch.manual_seed(seed)
    sizes = {**SIZES, "encoder_layers": 2, "max_positions": 40, "dropout": 0.0, "bigs_num_ssm": 4}
    net: Any = build_model(argparse.Namespace(arch="roberta_bigs", **{**sizes, **values}), Task())
    with torch.no_grad():  # fresh weights are so small that a product of four of them hardly has a gradient
        for key, parameter in net.named_parameters():
            parameter.mul_(10.0 if key.endswith("proj.weight") else 1.0)
    return net


def update(net: RobertaModel, optimizer: Any) -> None:
    optimizer.zero_grad()
    loss = net(IDS, masked_tokens=torch.ones_like(IDS, dtype=torch.bool), masked_targets=IDS.flatten())[0]
    optimizer.backward(loss.float())
    optimizer.multiply_grads(1 / IDS.numel())
    optimizer.clip_grad_norm(1.0)
    optimizer.step()


def types(net: torch.nn.Module) -> dict[bool, set[torch.dtype]]:
    """The types of the parameters of convolutions (True) and of the others."""
    return {kind: {p.dtype for n, p in net.named_parameters() if ("_ssm." in n) is kind} for kind in (True, False)}


@pytest.mark.parametrize("common", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_updates(common: dict[str, bool], name: str) -> None:
    mode = "bf16" if any("bf16" in key for key in common) else "fp16"
    settings = root(name, **common)
    settings.optimizer.momentum = 0.0
    net = precision.cast_model(model(), mode)
    half = torch.bfloat16 if mode == "bf16" else torch.float16
    try:
        optimizer = precision.build(mode, settings, list(net.named_parameters()))
    except Exception as error:  # what an optimizer cannot do it says
        assert "masters" in str(error) and name != "adam", error
        return
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    update(net, optimizer)
    assert types(net) == {True: {torch.float32}, False: {half}}
    for key, value in net.named_parameters():
        assert torch.isfinite(value).all(), key
        assert name == "sgd" or not torch.equal(value, before[key]), key  # small steps of SGD round to nothing
    state = precision.full_precision_state(net, optimizer)
    assert {value.dtype for value in state.values()} == {torch.float32}
    for key, value in net.named_parameters():
        if "_ssm." in key:
            assert torch.equal(state[key], value), "what is float32 in the model is exactly what is stored"
    again = precision.cast_model(model(seed=2), mode)
    state, moments = copy.deepcopy((state, optimizer.state_dict()))  # as a file would be
    again.load_state_dict(state)
    resumed = precision.build(mode, settings, list(again.named_parameters()))
    precision.restore_masters(resumed, state)
    resumed.load_state_dict(moments)
    for _ in range(2):
        update(net, optimizer)
        update(again, resumed)
    for (key, value), other in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), key


def test_float32_parameters_are_updated_as_in_a_float32_model() -> None:
    """With the gradients of one update given, the float32 parameters of a bf16 model move exactly as without bf16."""
    found = []
    for mode, common in (("bf16", {"bf16": True}), ("fp32", {})):
        net = precision.cast_model(model(), mode)
        optimizer = precision.build(mode, root("adam", **common), list(net.named_parameters()))
        optimizer.zero_grad()
        draw = torch.Generator().manual_seed(3)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        optimizer.multiply_grads(0.5)
        optimizer.step()
        found.append({key: value for key, value in net.named_parameters() if "_ssm." in key})
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-7, atol=0)


def test_norm_of_gradients_of_several_types() -> None:
    grads = [torch.randn(3000).bfloat16(), torch.randn(7), torch.randn(5, 4).bfloat16(), torch.randn(2, 3).t()]
    wanted = torch.cat([grad.float().flatten() for grad in grads]).double().norm()
    assert float(total_norm(grads)) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("fp32", [False, True])
def test_averages(fp32: bool) -> None:
    net = model().bfloat16()
    config = SimpleNamespace(
        ema_decay=0.5, ema_start_update=0, ema_update_freq=1, ema_fp32=fp32, ema_seed_model=None, ema_device=None
    )
    ema = EMA(net, config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.25)
    ema.step(net, 1)
    assert types(ema.get_model()) == types(net) == {True: {torch.float32}, False: {torch.bfloat16}}
    key = "encoder.sentence_encoder.layers.0.self_attn.forward_ssm.A_im"
    own, average = dict(net.named_parameters())[key], dict(ema.get_model().named_parameters())[key]
    torch.testing.assert_close(average, own - 0.125)


@pytest.mark.parametrize("method", ["fft", "chunks"])
def test_autocast_does_not_reach_into_convolutions(method: str) -> None:
    ssm = model().encoder.sentence_encoder.layers[0].self_attn.forward_ssm()  # type: ignore[union-attr, operator]
    u = torch.randn(2, 150, 6)
    plain = ssm_conv(u, u, ssm, ssm, None, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ssm_conv(u, u, ssm, ssm, None, method)
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a, b)
