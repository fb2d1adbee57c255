"""Cross-entropy rows in Triton: against the reference implementation in the interpreter, and compiled for devices."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import linear_cross_entropy as operator
from fairseq.ops.linear_cross_entropy import cross_entropy_rows_reference, linear_cross_entropy_reference
from fairseq.ops.self_check import limit, worst
from tests.triton_tools import DEVICES, compile_for, in_interpreter, interpret, needs_triton, outside

IGNORED = 3
TYPES = [torch.float32, torch.float16, torch.bfloat16]  # the interpreter cuts bfloat16 off instead of rounding it


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def kernels(monkeypatch):
    from fairseq.ops.triton import cross_entropy_kernels

    monkeypatch.setattr(cross_entropy_kernels, "BLOCK", 64)
    return cross_entropy_kernels


def problem(rows, columns, dtype, padding=0):
    """Logits whose rows may begin further apart than they are long, bias, and targets of which some are ignored."""
    logits = (torch.randn(rows, columns + padding) * 3).to(dtype)[:, :columns]
    targets = torch.randint(columns, (rows,))
    targets[rows // 2] = IGNORED
    return logits, torch.randn(columns).to(dtype), targets


@in_interpreter
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 265])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_equals_the_reference(kernels, dtype, columns, with_gradient):
    for rows, with_bias, scale in ((1, True, None), (7, False, torch.tensor(1.7)), (6, True, torch.tensor(0.3))):
        logits, bias, targets = problem(rows, columns, dtype, padding=5)
        given = (bias if with_bias else None, targets, IGNORED, scale, with_gradient)
        expected, before = logits.clone(), logits.clone()
        reference = cross_entropy_rows_reference(expected, *given)
        assert worst([(kernels.cross_entropy_rows_(logits, *given), reference), (logits, expected)]) <= limit(dtype)
        assert with_gradient or torch.equal(logits, before)


@in_interpreter
def test_nothing_is_written_beyond_a_row_and_ignored_rows_may_hold_anything(kernels):
    memory = torch.full((3, 80), 7.0)
    logits = memory[:, :70]
    logits[1] = torch.nan
    losses = kernels.cross_entropy_rows_(logits, None, torch.tensor([69, IGNORED, 0]), IGNORED, None, True)
    assert (memory[:, 70:] == 7).all() and losses[1] == 0 and not logits[1].any() and losses.isfinite().all()


@in_interpreter
def test_extremes(kernels):
    logits = torch.tensor([[-torch.inf] * 64 + [1.0], [60000.0, *[-60000.0] * 64], [0.0] * 65])
    losses = kernels.cross_entropy_rows_(logits, None, torch.tensor([64, 1, 65]), IGNORED, None, True)
    assert losses[0] == 0 and losses[1] == 120000 and losses[2].isnan()  # the last: there is no such column
    assert not logits[0].any() and logits[1, 0] == 1 and logits[1, 1] == -1
    assert kernels.cross_entropy_rows_(logits[:0], None, torch.zeros(0).long(), IGNORED, None, True).shape == (0,)


@in_interpreter
@pytest.mark.parametrize("dtype", TYPES)
def test_the_problem_of_the_one_time_check(kernels, dtype):
    assert worst(kernels.differences(torch.device("cpu"), dtype)) <= limit(dtype)


@outside
def test_chunks_of_a_device_are_large_and_their_rows_aligned(monkeypatch):
    monkeypatch.setattr(operator, "_on_device", lambda table: True)
    table = torch.empty(50265, 8, dtype=torch.bfloat16)
    assert operator._rows_of_chunk(table) == 2560 and operator._rows_of_chunk(table.float()) == 1280
    buffer = operator._logits_buffer(table, [(0, 5), (5, 9)])
    assert buffer.shape == (5, 50265) and buffer.stride() == (50304, 1)
    assert operator._logits_buffer(table, []) is None


@in_interpreter
def test_the_whole_operator_with_the_memory_of_a_device(kernels, monkeypatch):
    torch.library.impl("fairseq::cross_entropy_rows_", "CPU", kernels.cross_entropy_rows_)  # instead of a compiled one
    monkeypatch.setattr(operator, "_on_device", lambda table: True)
    monkeypatch.setattr(operator, "_rows_of_chunk", lambda table: 4)
    results = []
    hidden, weight, bias = torch.randn(11, 6), torch.randn(70, 6), torch.randn(70)
    targets = torch.randint(70, (11,))
    for function in (operator.linear_cross_entropy, linear_cross_entropy_reference):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        loss = function(leaves[0], leaves[1], targets, leaves[2], None, IGNORED)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert worst(zip(*results, strict=True)) <= limit(torch.float32)


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiles_without_spills_and_reads_16_bytes_at_a_time(device, dtype, tmp_path):
    from fairseq.ops.triton import cross_entropy_kernels as kernels

    pointers = {"logits": dtype, "bias": dtype, "targets": torch.int64, "scale": torch.float32, "losses": torch.float32}
    constants = {"HAS_BIAS": True, "HAS_SCALE": False, "WITH_GRADIENT": True, "BLOCK": kernels.BLOCK}
    arguments = {**pointers, "stride": 50304, "columns": 50265, "ignore_index": -100, **constants}
    found = compile_for(device, kernels._rows_kernel, arguments, tmp_path, num_warps=kernels.BLOCK // 256)
    assert not found.spilled and found.registers <= 64  # at least two rows on a multiprocessor
    assert "ld.global.v4.b32" in found.ptx and "st.global.v4.b32" in found.ptx and "atom." not in found.ptx


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
def test_on_a_device(device, dtype):
    results = []
    for to in ("cpu", device):
        torch.manual_seed(2)
        logits, bias, targets = (x.to(to) for x in problem(33, 50265, dtype))
        losses = torch.ops.fairseq.cross_entropy_rows_(logits.contiguous(), bias, targets, IGNORED, None, True)
        results.append([losses.cpu(), logits.cpu()])
    assert worst(zip(*results, strict=True)) <= limit(dtype)
