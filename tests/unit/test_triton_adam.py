"""Adam of half-precision models in Triton: to the last bit the formula in float32, in the interpreter; compiled for devices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fairseq.ops import self_check
from fairseq.ops.adam import low_precision_adam_reference
from fairseq.ops.self_check import limit, worst
from fairseq.optim import adam_update
from fairseq.optim.adam_update import Hyperparameters, Segment, reference_update, update
from tests.triton_tools import DEVICES, compile_for, in_interpreter, interpret, needs_triton, outside

SIZES = [1, 64, 65, 200, 0, 3]
HYPER = {"step": 3.0, "lr": 0.1, "beta1": 0.9, "beta2": 0.98, "weight_decay": 0.01, "eps": 1e-6}


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def kernels(monkeypatch):
    from fairseq.ops.triton import adam_kernels

    monkeypatch.setattr(adam_kernels, "BLOCK", 64)
    return adam_kernels


def columns_of(dtype: torch.dtype, sizes: list[int] = SIZES) -> list[list[Tensor]]:
    """Masters, gradients, moments and low-precision parameters."""
    params = [torch.randn(n) for n in sizes]
    grads = [torch.randn(n).to(dtype) for n in sizes]
    moments = [torch.randn(n) for n in sizes]
    return [params, grads, moments, [m.square() for m in moments], [p.to(dtype) for p in params]]


def copied(columns: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[tensor.clone() for tensor in column] for column in columns]


def formula(columns, step, lr, beta1, beta2, weight_decay, eps, factor):
    """Every operation a tensor of its own, rounded to float32, as the kernel promises it."""
    numbers = (factor, 1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2)
    numbers += (lr / (1 - beta1**step), math.sqrt(1 - beta2**step), eps)
    factor, decay, rest1, beta2, rest2, step_size, root, eps = (torch.tensor(x, dtype=torch.float32) for x in numbers)
    for param, half, m, v, low in zip(*columns, strict=True):
        grad = half.float() * factor
        m += rest1 * (grad - m)
        v.copy_(beta2 * v + rest2 * grad * grad)
        param.copy_(param * decay - step_size * m / (v.sqrt() / root + eps))
        low.copy_(param)


@in_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [None, torch.tensor(0.37, dtype=torch.float64), torch.tensor(0.37)])
def test_has_the_bits_of_the_formula(kernels, dtype, factor):
    found = columns_of(dtype)
    expected, twin, grads = copied(found), copied(found), found[1][2].clone()
    kernels.low_precision_adam_(*found, *HYPER.values(), factor)
    formula(expected, *HYPER.values(), 1.0 if factor is None else float(factor))
    low_precision_adam_reference(*twin, *HYPER.values(), factor)
    for place in (0, 2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[place], expected[place], strict=True))
        pairs = [pair for pair in zip(found[place], twin[place], strict=True) if pair[0].numel()]
        assert worst(pairs) <= 4 * torch.finfo(torch.float32).eps
    assert torch.equal(found[1][2], grads)
    if dtype != torch.bfloat16:  # which the interpreter cuts off instead of rounding it
        assert all(torch.equal(low, param.to(dtype)) for param, low in zip(found[0], found[4], strict=True))


@in_interpreter
def test_tensors_that_begin_anywhere_and_types_of_their_own(kernels):
    flat = [torch.randn(300) for _ in range(4)]
    flat[3].square_()
    rows = [[t[begin : begin + n] for t in flat] for begin, n in ((0, 64), (64, 1), (65, 130), (195, 105))]
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns.append([p.to(torch.float16 if n % 2 else torch.float32) for n, p in enumerate(columns[0])])
    expected = copied(columns)
    version = columns[4][1]._version
    kernels.low_precision_adam_(*columns, *HYPER.values(), None)
    formula(expected, *HYPER.values(), 1.0)
    assert all(torch.equal(a, b) for one, other in zip(columns, expected, strict=True) for a, b in zip(one, other))
    assert columns[4][1]._version > version


@in_interpreter
def test_what_does_not_fit_is_refused(kernels):
    for place, wrong in (
        (0, lambda t: t.double()),
        (2, lambda t: t.half()),
        (1, lambda t: t[:-1]),
        (4, lambda t: t[::2]),
    ):
        columns = columns_of(torch.float16, [64])
        columns[place] = [wrong(columns[place][0])]
        with pytest.raises(ValueError, match="dense"):
            kernels.low_precision_adam_(*columns, *HYPER.values(), None)


@in_interpreter
@pytest.mark.parametrize("corrected", [False, True])
def test_is_the_update_of_the_optimizer(kernels, monkeypatch, corrected):
    """Epsilon where fairseq's Adam, or the published AdamW, has it."""
    torch.library.impl("fairseq::low_precision_adam_", "CPU", kernels.low_precision_adam_)  # instead of a compiled one
    monkeypatch.setattr(adam_update.library, "has_kernel", lambda *_: True)
    found = columns_of(torch.float16)
    expected = copied(found)
    for step in (1, 2):
        hyper = Hyperparameters(1e-2, (0.9, 0.98), 1e-3, 0.01, step, corrected)
        update([Segment(*row) for row in zip(*found, strict=True)], hyper, 0.5)
        reference_update(expected[0], [g.float() for g in expected[1]], expected[2], expected[3], hyper, 0.5)
    pairs = [pair for pair in zip(found[0], expected[0], strict=True) if pair[0].numel()]
    assert worst(pairs) <= 16 * torch.finfo(torch.float32).eps


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_spills_and_contracts_nothing(device, tmp_path):
    import triton.language as tl

    from fairseq.ops.triton import adam_kernels as kernels

    numbers = dict.fromkeys(("decay", "rest1", "beta2", "rest2", "step_size", "root", "eps"), 0.5)
    constants = {"UNREAD": True, "GRAD": tl.bfloat16, "LOW": tl.bfloat16, "ALIGNED": 16, "TENSORS": 256}
    arguments = {"table": torch.int64, "tensors": 200, "factor": torch.float32, **numbers, **constants}
    options = {"num_warps": 8, "enable_fp_fusion": False}
    found = compile_for(device, kernels._adam_kernel, {**arguments, "BLOCK": kernels.BLOCK}, tmp_path, **options)
    assert not found.spilled and found.registers <= 96
    assert found.ptx.count("ld.global.v4.b32") >= 7  # 16 bytes at a time: three float32 numbers and a gradient
    assert "fma.rn.f32" not in found.ptx and "sqrt.rn.f32" in found.ptx and "div.rn.f32" in found.ptx


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_device(device, dtype):
    sizes = [1, 2048, 2049, 50265, 7, 768 * 768]
    columns = columns_of(dtype, sizes)
    there = [[tensor.to(device) for tensor in column] for column in columns]
    factor = torch.tensor(0.37)
    torch.ops.fairseq.low_precision_adam_(*there, *HYPER.values(), factor.to(device))
    formula(columns, *HYPER.values(), 0.37)
    assert self_check.kernels("adam", there[0][0].device, torch.float32) is not None
    for one, other in zip(there, columns, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one, other, strict=True))
    assert limit(torch.float32) > 0
