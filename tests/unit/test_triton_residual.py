"""Dropout, residual and layer norm in Triton: against the reference implementations in the interpreter, and compiled for devices."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import residual as reference
from fairseq.ops.self_check import limit, worst
from tests.triton_tools import DEVICES, compile_for, in_interpreter, interpret, needs_triton, outside

SEED = torch.tensor((77 << 33) + 5)
EPS = 1e-5
TYPES = [torch.float32, torch.float16, torch.bfloat16]
EXACT = [torch.float32, torch.float16]  # the interpreter cuts bfloat16 off instead of rounding it


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def kernels():
    from fairseq.ops.triton import residual_kernels

    return residual_kernels


def problem(shape, dtype):
    x, residual, grad = (torch.randn(shape).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(shape[-1]).to(dtype) for _ in range(2))
    return x, residual, weight, bias, grad


@in_interpreter
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("shape", [(1, 1), (300, 5), (2, 3, 768), (3, 777), (0, 8), (4,)])
def test_dropout_has_the_bits_of_the_reference(kernels, shape, dtype):
    x, residual, *_ = problem(shape, dtype)
    for p in (0.0, 0.3, 1.0):
        for base in (None, residual, residual[..., :1].expand_as(x)):
            found = kernels.dropout_add(x, base, p, SEED)
            assert torch.equal(found, reference.dropout_add_reference(x, base, p, SEED)) and found.is_contiguous()


@in_interpreter
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 4), (2, 3, 768), (33, 77)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_layer_norm_equals_the_reference(kernels, shape, dtype, p):
    x, residual, weight, bias, grad = problem(shape, dtype)
    expected = reference.layer_norm_reference(x, residual, weight, bias, EPS, p, SEED)
    found = kernels.dropout_add_layer_norm_forward(x, residual, weight, bias, EPS, p, SEED)
    assert worst(zip(found, expected, strict=True)) <= limit(dtype)
    given = (grad, x, residual, weight, *expected[1:], p, SEED)
    found, expected = kernels.dropout_add_layer_norm_backward(*given), reference.layer_norm_backward_reference(*given)
    assert [t.shape for t in found] == [t.shape for t in expected] and all(t.dtype == dtype for t in found)
    pairs = [pair for pair in zip(found, expected, strict=True) if pair[0].numel()]
    assert len(pairs) == (4 if p else 3) and worst(pairs) <= limit(dtype)


@in_interpreter
def test_strips_of_rows_are_added_up(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "STRIPS", 3)
    monkeypatch.setattr(kernels, "_TILE", 512)
    for rows in (11, 12, 13):
        x, residual, weight, _, grad = problem((rows, 200), torch.float32)  # two rows at a time: strips of 4 or 6
        _, mean, rstd = reference.layer_norm_reference(x, residual, weight, weight, EPS, 0.1, SEED)
        given = (grad, x, residual, weight, mean, rstd, 0.1, SEED)
        pairs = zip(
            kernels.dropout_add_layer_norm_backward(*given),
            reference.layer_norm_backward_reference(*given),
            strict=True,
        )
        assert worst(pairs) <= limit(torch.float32)


@in_interpreter
def test_one_column_nothing_and_too_many_columns(kernels, monkeypatch):
    x, residual, weight, bias, grad = problem((3, 1), torch.float32)
    out, mean, rstd = kernels.dropout_add_layer_norm_forward(x, residual, weight, bias, EPS, 0.0, SEED)
    assert torch.equal(out, bias.expand(3, 1)) and torch.equal(mean, (x + residual)[:, 0])
    assert torch.allclose(rstd, torch.tensor(EPS**-0.5).expand(3))
    empty = x.new_zeros(0, 8)
    weight = x.new_zeros(8)
    _, mean, rstd = kernels.dropout_add_layer_norm_forward(empty, empty, weight, weight, EPS, 0.1, SEED)
    found = kernels.dropout_add_layer_norm_backward(empty, empty, empty, weight, mean, rstd, 0.1, SEED)
    assert not any(t.any() for t in found[2:]) and found[0].shape == (0, 8)
    monkeypatch.setattr(kernels, "WIDEST", 4)
    wide = torch.randn(2, 5, dtype=torch.float32)
    found = kernels.dropout_add(wide, None, 0.5, SEED)
    assert torch.equal(found, reference.dropout_add_reference(wide, None, 0.5, SEED))


@in_interpreter
@pytest.mark.parametrize("dtype", TYPES)
def test_the_problem_of_the_one_time_check(kernels, dtype):
    assert worst(kernels.differences(torch.device("cpu"), dtype)) <= limit(dtype)


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "columns"), [(torch.bfloat16, 768), (torch.float32, 768), (torch.bfloat16, 8192)])
def test_compiles_without_spills_and_reads_16_bytes_at_a_time(device, dtype, columns, tmp_path):
    from fairseq.ops.triton import residual_kernels as kernels

    tile = kernels._tile(columns)
    warps = tile.pop("num_warps")
    sizes = {"rows": 17, "columns": columns}
    dropout = {"seed": torch.int64, "threshold": 6553, "scale": 1.1}
    constants = {"DROPOUT": True, **tile}
    moments = dict.fromkeys(("means", "rstds"), torch.float32)

    def compiled(kernel, names, *more, **options):
        arguments = dict.fromkeys(names, dtype)
        for part in (*more, constants):
            arguments.update(part)
        return compile_for(device, kernel, arguments, tmp_path, num_warps=warps, **options)

    found = [
        compiled(
            kernels._dropout_add_kernel,
            ["x", "residual", "out"],
            {**sizes, **dropout, "HAS_RESIDUAL": True},
            enable_fp_fusion=False,
        ),
        compiled(
            kernels._norm_kernel,
            ["x", "residual", "weight", "bias", "out"],
            {**moments, **sizes, "eps": EPS, **dropout},
        ),
        compiled(
            kernels._norm_backward_kernel,
            ["grad", "x", "residual", "weight"],
            {**moments, "dx": dtype, "dresidual": dtype, "sums": torch.float32, **sizes, "strip": 32, **dropout},
        ),
    ]
    for kernel in found:
        assert not kernel.spilled and kernel.registers <= 128
        assert "ld.global.v4.b32" in kernel.ptx and "st.global.v4.b32" in kernel.ptx and "atom." not in kernel.ptx
    assert "fma.rn.f32" not in found[0].ptx


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 33, 300), (4099, 768), (9, 8192), (3, 8200), (0, 8)])
def test_on_a_device(device, shape, dtype):
    tensors = problem(shape, dtype)
    there = [t.to(device) for t in tensors]
    x, residual = there[:2]
    found = reference.dropout_add(x, residual, 0.1, SEED.to(device)).cpu()
    assert torch.equal(found, reference.dropout_add_reference(*tensors[:2], 0.1, SEED))
    results = []
    for (*leaves, grad), seed in ((tensors, SEED), (there, SEED.to(device))):
        leaves = [t.clone().requires_grad_() for t in leaves]
        out = reference.dropout_add_layer_norm(*leaves, EPS, 0.1, seed)
        results.append([t.cpu() for t in (out.detach(), *torch.autograd.grad(out, leaves, grad))])
    if x.numel() and shape[-1] > 1:
        assert worst(zip(*results, strict=True)) <= limit(dtype)
