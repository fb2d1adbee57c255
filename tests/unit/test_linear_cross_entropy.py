"""Head and loss in one operator: against the reference implementation, in chunks, its memory, gradients handed out once, registration."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from fairseq.ops import linear_cross_entropy as module
from fairseq.ops.linear_cross_entropy import (
    cross_entropy_rows_reference,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from tests.common import ROOT, assert_as_accurate_as


def problem(rows, channels, vocabulary, dtype=torch.float32, bias=True, scale=False):
    hidden = torch.randn(rows, channels, dtype=torch.float64)
    weight = torch.randn(vocabulary, channels, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (rows,))
    targets[: rows // 3] = 1  # ignored
    shift = torch.randn(vocabulary, dtype=torch.float64).to(dtype) if bias else None
    factor = torch.tensor(0.7, dtype=dtype) if scale else None
    return hidden.to(dtype), weight.to(dtype), targets, shift, factor


def with_grads(function, hidden, weight, targets, bias, scale, times=3.0):
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias, scale)]
    loss = function(leaves[0], leaves[1], targets, leaves[2], leaves[3], 1)
    return [loss.detach(), *torch.autograd.grad(loss * times, [x for x in leaves if x is not None])]


@pytest.mark.parametrize("size", [(1, 1, 2), (7, 5, 33), (65, 16, 500), (0, 4, 9), (1, 3, 70)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bias", "scale"), [(True, False), (False, True), (False, False), (True, True)])
@pytest.mark.parametrize("rows", [512, 16])
def test_as_accurate_as_the_reference(size, dtype, bias, scale, rows, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    tensors = problem(*size, dtype, bias, scale)
    fast, reference = with_grads(linear_cross_entropy, *tensors), with_grads(linear_cross_entropy_reference, *tensors)
    wide = [x.double() if x is not None and x.is_floating_point() else x for x in tensors]
    truth = with_grads(linear_cross_entropy_reference, *wide)
    for a, b, c in zip(fast, reference, truth, strict=True):
        assert a.dtype == b.dtype
        if dtype == torch.float64:
            torch.testing.assert_close(a, c)
        else:
            assert_as_accurate_as(a, b, c)


def test_chunks_cover_all_rows(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 10)
    for rows in (0, 1, 9, 10, 11, 25, 100):
        chunks = module._chunks(rows, module.ROWS)
        assert [row for start, end in chunks for row in range(start, end)] == list(range(rows))
        assert all(0 < end - start <= 10 for start, end in chunks)


def test_extreme_logits():
    hidden, weight = torch.eye(3) * 300, torch.eye(3)
    targets = torch.tensor([0, 0, 2])
    found = with_grads(linear_cross_entropy, hidden, weight, targets, None, None)
    expected = with_grads(linear_cross_entropy_reference, hidden, weight, targets, None, None)
    torch.testing.assert_close(found, expected)


def test_no_gradients_without_need():
    hidden, weight, targets, bias, _ = problem(9, 4, 20)
    leaf = hidden.clone().requires_grad_()
    with torch.no_grad():
        loss = linear_cross_entropy(leaf, weight, targets, bias, None, 1)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy_reference(hidden, weight, targets, bias, None, 1))


def test_a_graph_can_be_walked_twice():
    leaves = [x.clone().requires_grad_() for x in problem(9, 4, 20)[:2]]
    targets = torch.arange(9)
    loss = linear_cross_entropy(*leaves, targets)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(loss, leaves))


def test_the_large_gradient_is_not_copied():
    """Without a factor the operator's own tensor becomes the parameter's gradient."""
    weight = torch.randn(50, 4, requires_grad=True)
    hidden = torch.randn(3, 4)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 3]))
    address = loss.grad_fn.gradients[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == address


def test_autocast_does_not_reach_inside():
    tensors = problem(9, 4, 20, torch.float32, True, True)
    expected = with_grads(linear_cross_entropy, *tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(with_grads(linear_cross_entropy, *tensors), expected)


def test_gradcheck():
    hidden, weight, targets, bias, scale = problem(6, 3, 8, torch.float64, True, True)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias, scale)]
    assert torch.autograd.gradcheck(lambda h, w, b, s: linear_cross_entropy(h, w, targets, b, s, 1), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    hidden, weight, targets, bias, scale = problem(6, 3, 8, dtype, True, True)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias, scale)]
    operator = torch.ops.fairseq.linear_cross_entropy_forward.default
    h, w, b, s = leaves
    torch.library.opcheck(operator, (h, w, targets, b, s, 1, True))
    torch.library.opcheck(operator, (hidden, weight, targets, None, None, 1, False))
    rows = torch.ops.fairseq.cross_entropy_rows_.default
    wide = None if scale is None else scale.to(torch.promote_types(dtype, torch.float32))
    torch.library.opcheck(rows, (torch.randn(6, 8).to(dtype), bias, targets, 1, wide, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_kernel_equals_its_reference(dtype):
    logits, targets, bias = torch.randn(9, 301).to(dtype), torch.arange(9), torch.randn(301).to(dtype)
    scale = torch.tensor(1.5)
    mine, other = logits.clone(), logits.clone()
    losses = torch.ops.fairseq.cross_entropy_rows_(mine, bias, targets, 4, scale, True)
    torch.testing.assert_close(losses, cross_entropy_rows_reference(other, bias, targets, 4, scale, True))
    torch.testing.assert_close(mine, other)
    assert float(losses[4]) == 0 and not mine[4].any()


def test_compiled_graph():
    def function(hidden, weight, targets, bias, scale, ignored):
        return linear_cross_entropy(hidden * 2, weight, targets, bias, scale, ignored)

    torch._dynamo.reset()
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    tensors = problem(9, 4, 20, scale=True)
    for a, b in zip(with_grads(quick, *tensors), with_grads(function, *tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, r"\(V, C\), but have shapes \(3, 5\) and \(7, 4\)"),
        ({"weight": torch.zeros(7, 4).double()}, "one floating-point type"),
        ({"targets": torch.zeros(2, dtype=torch.long)}, r"int64 of shape \(3,\)"),
        ({"bias": torch.zeros(3)}, r"`bias` must have shape \(7,\)"),
        ({"scale": torch.zeros(3)}, "one number"),
    ],
)
def test_mistakes(change, message):
    arguments = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(7, 4), "targets": torch.zeros(3, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, **change})


def test_targets_outside_the_vocabulary_are_refused():
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(5, 3), torch.tensor([0, 5]))


MEMORY = """
import resource, sys, torch
from fairseq.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
torch.set_num_threads(1)
rows, channels, vocabulary = 4096, 16, 12000
hidden, weight = torch.randn(rows, channels, requires_grad=True), torch.randn(vocabulary, channels, requires_grad=True)
targets = torch.randint(0, vocabulary, (rows,))
function = linear_cross_entropy if sys.argv[1] == "fast" else linear_cross_entropy_reference
function(hidden[:8], weight, targets[:8]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
function(hidden, weight, targets).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="no getrusage")
def test_memory_is_at_most_a_fifth():
    used = []
    for name in ("fast", "reference"):
        done = subprocess.run([sys.executable, "-c", MEMORY, name], cwd=ROOT, capture_output=True, text=True)
        used.append(int(done.stdout))
    assert used[0] <= used[1] / 5, used
