"""Dropout, residual and layer norm in one pass: kernels against reference implementations, masks, gradients, registration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from fairseq.ops import library
from fairseq.ops.residual import (
    dropout_add,
    dropout_add_layer_norm,
    dropout_add_reference,
    factors,
    layer_norm_backward_reference,
    layer_norm_reference,
)
from tests.common import ROOT, assert_as_accurate_as

compiled = pytest.mark.skipif(not library.load(), reason=str(library.why_unavailable()))
SEED = torch.tensor((77 << 33) + 5)
EPS = 1e-5
SHAPES = [(1, 1), (3, 5), (130, 64), (2, 33, 300), (70, 257), (0, 8), (4,)]


def problem(shape, dtype=torch.float32):
    x, residual, grad = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
    weight, bias = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    return x, residual, weight, bias, grad


def with_grads(function, leaves, grad):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_as_accurate_as_the_parts(shape, dtype, p):
    x, residual, weight, bias, grad = problem(shape, dtype)

    def parts(dtype):
        def function(x, residual, weight, bias):
            z = residual + x * factors(x, p, SEED).to(dtype)
            return F.layer_norm(z, shape[-1:], weight, bias, EPS)

        return with_grads(function, [t.to(dtype) for t in (x, residual, weight, bias)], grad.to(dtype))

    fast = with_grads(lambda *t: dropout_add_layer_norm(*t, EPS, p, SEED), (x, residual, weight, bias), grad)
    assert all(t.dtype == dtype for t in fast)
    if shape[-1] == 1:  # the normalized row and its gradients are zero but for rounding, divided by sqrt(eps)
        return
    for name, a, b, c in zip(
        ("out", "dx", "dresidual", "dw", "db"), fast, parts(dtype), parts(torch.float64), strict=True
    ):
        if dtype == torch.float64:
            torch.testing.assert_close(a, c)
        else:
            assert_as_accurate_as(a, b, c, name=name)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("with_residual", [True, False])
def test_dropout_add(p, with_residual):
    x, residual, *_, grad = problem((3, 70, 300))
    base = residual if with_residual else None
    torch.testing.assert_close(dropout_add(x, base, p, SEED), dropout_add_reference(x, base, p, SEED))
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(dropout_add(leaf, base, p, SEED), leaf, grad)
    assert torch.equal(dx, grad * factors(x, p, SEED))
    strided = torch.randn(5, 7).t()
    torch.testing.assert_close(dropout_add(strided, None, p, SEED), dropout_add(strided.contiguous(), None, p, SEED))


def test_gradcheck():
    x, residual, weight, bias, _ = (t.double() for t in problem((2, 3, 5)))
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias)]
    for p in (0.0, 0.4):
        assert torch.autograd.gradcheck(lambda *t, p=p: dropout_add_layer_norm(*t, EPS, p, SEED), leaves)
        assert torch.autograd.gradcheck(lambda a, b, p=p: dropout_add(a, b, p, SEED), leaves[:2])
        out, mean, rstd = layer_norm_reference(*leaves, EPS, p, SEED)
        grad = torch.randn_like(out)
        by_hand = list(layer_norm_backward_reference(grad, x, residual, weight, mean, rstd, p, SEED))
        by_hand[0] = by_hand[0] if p else by_hand[1]
        torch.testing.assert_close(by_hand, list(torch.autograd.grad(out, leaves, grad)))


def test_results_do_not_depend_on_threads():
    x, residual, weight, bias, grad = problem((700, 48))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            function = lambda *t: dropout_add_layer_norm(*t, EPS, 0.2, SEED)  # noqa: E731
            results.append(with_grads(function, (x, residual, weight, bias), grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(dropout_add(x, None, 0.2, SEED)[:9], dropout_add(x[:9], None, 0.2, SEED))


def test_mask_statistics():
    x = torch.ones(2000, 300)
    kept = dropout_add(x, None, 0.1, SEED) > 0
    assert abs(float(kept.double().mean()) - 0.9) < 4 * (0.09 / kept.numel()) ** 0.5
    other = dropout_add(x, None, 0.1, SEED + 1) > 0
    assert abs(float((kept == other).double().mean()) - 0.82) < 0.005
    assert not dropout_add(x, None, 1.0, SEED).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_opcheck(dtype, p):
    x, residual, weight, bias, grad = problem((2, 3, 7), dtype)
    ops = torch.ops.fairseq
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias)]
    torch.library.opcheck(ops.dropout_add.default, (leaves[0], None, p, SEED))
    torch.library.opcheck(ops.dropout_add.default, (*leaves[:2], p, SEED))
    torch.library.opcheck(ops.dropout_add_layer_norm_forward.default, (*leaves, EPS, p, SEED))
    _, mean, rstd = ops.dropout_add_layer_norm_forward(x, residual, weight, bias, EPS, p, SEED)
    torch.library.opcheck(ops.dropout_add_layer_norm_backward.default, (grad, x, residual, weight, mean, rstd, p, SEED))


def test_compiled_graph():
    x, residual, weight, bias, grad = problem((3, 4, 16))

    def function(x, residual, weight, bias):
        seed = torch.full((), 9)
        return dropout_add(dropout_add_layer_norm(x * 2, residual, weight, bias, EPS, 0.3, seed), x, 0.1, seed)

    torch._dynamo.reset()
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = (x, residual, weight, bias)
    for a, b in zip(with_grads(quick, leaves, grad), with_grads(function, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


@compiled
def test_kernels_check_before_they_touch_memory():
    ops, x, w = torch.ops.fairseq, torch.zeros(3, 4), torch.ones(4)
    for arguments in (
        (x, x[:2], w, w),
        (x, x.double(), w, w),
        (x, x, w[:2], w),
        (x, x, w, w[:3]),
        (x, x, w.double(), w),
    ):
        with pytest.raises(RuntimeError):
            ops.dropout_add_layer_norm_forward(*arguments, EPS, 0.1, SEED)
    for arguments in ((x, x[:2], 0.1, SEED), (x, x, 1.5, SEED), (x, x, 0.1, SEED.float()), (x.int(), None, 0.1, SEED)):
        with pytest.raises(RuntimeError):
            ops.dropout_add(*arguments)


def test_without_the_compiled_library():
    code = (
        "import torch\nfrom fairseq.modules.dropout import dropout, dropout_add_norm\ntorch.manual_seed(3)\n"
        "x = torch.arange(24.).view(4, 6)\nprint(dropout(x, 0.5, True).tolist())\n"
        "print(dropout_add_norm(x, -x, torch.nn.LayerNorm(6), 0.5, True).tolist())"
    )
    outputs = []
    for native in ("0", "1"):
        environment = {**os.environ, "FAIRSEQ_NATIVE": native}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        outputs.append([torch.tensor(eval(line, {"__builtins__": {}})) for line in done.stdout.splitlines()])
    assert len(outputs[0]) == 2
    torch.testing.assert_close(*outputs)
