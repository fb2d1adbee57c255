"""Convolutions by chunks in Triton: against the reference implementations in the interpreter, and compiled for devices."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from fairseq.ops import ssm
from fairseq.ops.self_check import differences, worst
from tests.fake_device import Waits, fake_cuda
from tests.numerics.test_ssm import parameters
from tests.triton_tools import DEVICES, compile_for, in_interpreter, interpret, needs_triton, outside


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def kernels(monkeypatch):
    """With few strips, so that some are longer than a piece."""
    from fairseq.ops.triton import ssm_kernels

    monkeypatch.setattr(ssm_kernels, "STRIPS", 3)
    return ssm_kernels


def problem(size, length, channels, modes, reverse, dtype=torch.float32):
    """A gradient, u, and the matrices of chunks of ``size`` positions."""
    grad, u = (torch.randn(2, length, channels).to(dtype) for _ in range(2))
    with torch.no_grad():
        return grad, u, *ssm.chunk_matrices(parameters(modes), size, torch.float32, reverse)


def both_passes(kernels, problem, reverse):
    """Pairs of what the kernels give and what the reference implementations give."""
    grad, *given = problem
    forward, backward = (kernels.OPERATORS[name] for name in ("ssm_chunks", "ssm_chunks_backward"))
    found = [forward(*given, reverse), *backward(grad, *given, reverse)]
    expected = [
        ssm.chunks_reference(*given, reverse),
        *ssm.chunks_backward_reference(grad, *given, reverse),
    ]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous()
    return list(zip(found, expected, strict=True))


# The interpreter multiplies the bits of bfloat16 numbers as if they were integers: float16 is tried.
@in_interpreter
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "dtype"), [*((length, torch.float32) for length in (1, 63, 64, 65, 200)), (200, torch.float16)]
)
def test_equals_the_reference(kernels, length, reverse, dtype):
    pairs = both_passes(kernels, problem(64, length, 40, 17, reverse, dtype), reverse)
    if length <= 64:  # no state is carried, so the gradients of its matrices are zeros on both sides
        assert all(torch.equal(a, b) and not a.any() for a, b in pairs[3:])
        pairs = pairs[:3]
    assert worst(pairs, ssm.SOURCE.rounding(dtype)) <= 1


@in_interpreter
@pytest.mark.parametrize(("size", "channels", "modes"), [(128, 8, 64), (48, 5, 3), (1, 40, 1), (100, 24, 20)])
def test_sizes(kernels, size, channels, modes):
    assert worst(both_passes(kernels, problem(size, 2 * size + 1, channels, modes, True), True)) <= 1


@in_interpreter
def test_strided_arguments(kernels):
    grad, u, *matrices = problem(64, 70, 24, 5, False)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (grad, u)]
    found, again = (both_passes(kernels, (*tensors, *matrices), False) for tensors in ((grad, u), turned))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))


@in_interpreter
def test_the_problem_of_the_one_time_check(kernels):
    assert worst(differences(kernels, ssm.SOURCE.references, "cpu", torch.float32)) <= 1


@in_interpreter
def test_large_states_stay_finite_in_float16(kernels):
    """A mode that hardly forgets adds up thousands of inputs; float16 ends at 65,504."""
    slow = ssm.SSM(*(torch.tensor(x) for x in ([-1e-4], [0.0], [[1e-3, 0.0]], [-3.0], [0.0])))
    matrices = ssm.chunk_matrices(slow, 128, torch.float32, False)
    u = torch.full((1, 1500, 16), 60.0).half()
    y = kernels.OPERATORS["ssm_chunks"](u, *matrices, False)
    assert kernels._Chunks.of(u, *matrices[:2]).added(matrices.into, u).sum() > 65504
    assert worst([(y, ssm.chunks_reference(u, *matrices, False))]) <= 1


class Silent:
    """A kernel that does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@needs_triton
@outside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [100, 300])
def test_nothing_waits_for_the_device(dtype, length, monkeypatch):
    from fairseq.ops.triton import ssm_kernels as kernels

    for name in ("_products_kernel", "_scan_kernel", "_outer_kernel"):
        monkeypatch.setattr(kernels, name, Silent())
    with fake_cuda(monkeypatch), Waits() as waits:
        u = torch.empty(2, length, 24, dtype=dtype, device="cuda")
        shapes = ((128, 128), (10, 128), (128, 10), (2, 5))
        matrices = [torch.empty(shape, device="cuda") for shape in shapes]
        y = kernels.OPERATORS["ssm_chunks"](u, *matrices, True)
        du, *gradients = kernels.OPERATORS["ssm_chunks_backward"](u, u, *matrices, True)
        assert all(x.shape == u.shape and x.dtype == dtype for x in (y, du))
        assert [x.shape for x in gradients] == [x.shape for x in matrices]
        assert all(x.dtype == torch.float32 for x in gradients)
    assert not waits.lines, waits.report()


def compiled(kernel, dtype, device, folder, constants, states=torch.float32, **options):
    """``kernel`` for 768 channels and 64 modes; tensors of states are of type ``states``."""
    numbers = dict.fromkeys(("added", "turn", "sums"), torch.float32) | dict.fromkeys(("states", "before"), states)
    numbers |= {"state_matrix": states, "length": 4097, "channels": 768, "chunks": 33, "pieces": 330, "strip": 7}
    arguments = {name: numbers.get(name, dtype) for name in kernel.arg_names} | constants
    return compile_for(device, kernel, arguments, folder, enable_fp_fusion=True, **options)


def check_products(device, dtype, folder):
    from fairseq.ops.triton import ssm_kernels as kernels

    states = torch.float32 if dtype == torch.float16 else dtype
    sizes = {"Q": 128, "S": 128, "PRECISION": "tf32" if dtype.itemsize == 2 else "ieee"}
    found = []
    for into in (False, True):
        by = asdict(kernels.tile("products", dtype.itemsize))
        options = {name: by.pop(name) for name in ("num_warps", "num_stages")}
        constants = sizes | by | {"INTO": into, "WITH_STATES": not into} | ({"out": torch.float32} if into else {})
        found.append(compiled(kernels._products_kernel, dtype, device, folder, constants, states, **options))
    for left in (False, True):
        by = asdict(kernels.tile("outer", states.itemsize if left else dtype.itemsize))
        options = {name: by.pop(name) for name in ("num_warps", "num_stages")}
        constants = sizes | by | {"STATES_LEFT": left, "STATES_RIGHT": False} | ({"left": states} if left else {})
        found.append(compiled(kernels._outer_kernel, dtype, device, folder, constants, states, **options))
    return found


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_compile_without_spills(device, dtype, tmp_path):
    for kernel in check_products(device, dtype, tmp_path):
        assert not kernel.spilled and "atom." not in kernel.ptx
        if dtype.itemsize == 2:
            assert ("wgmma.mma_async" if device >= 90 else "mma.sync") in kernel.ptx


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gradient", [False, True])
def test_scan_compiles_without_spills(device, gradient, tmp_path):
    from fairseq.ops.triton import ssm_kernels as kernels

    by = dict(kernels._SCAN)
    warps = by.pop("num_warps")
    constants = by | {"N": 64, "REVERSE": True, "GRADIENT": gradient}
    found = compiled(kernels._scan_kernel, torch.bfloat16, device, tmp_path, constants, torch.bfloat16, num_warps=warps)
    assert not found.spilled and found.registers <= 128 and "ld.global.v4.b32" in found.ptx and "atom." not in found.ptx


@needs_triton
@outside
def test_new_lengths_compile_nothing():
    from fairseq.ops.triton import ssm_kernels as kernels

    for kernel in (kernels._products_kernel, kernels._scan_kernel, kernels._outer_kernel):
        looked_at = {p.name for p in kernel.params if not p.do_not_specialize and not p.is_constexpr}
        assert not looked_at & {"length", "chunks", "pieces", "strip"} and "channels" in looked_at


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 128, 300, 4097])
@pytest.mark.parametrize("reverse", [False, True])
def test_on_a_device(device, length, reverse, dtype):
    from fairseq.ops.triton import ssm_kernels

    given = [x.to(device) for x in problem(128, length, 768, 64, reverse, dtype)]
    pairs, again = (both_passes(ssm_kernels, given, reverse) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(pairs, again, strict=True))
    assert worst(pairs[: 3 if length <= 128 else 6], ssm.SOURCE.rounding(dtype)) <= 1
