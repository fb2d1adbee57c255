"""Linear maps: every way to the product gives the same result; how the way is chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fairseq.errors import ConfigError
from fairseq.modules.feed_forward import Linear
from fairseq.ops import linear as module
from fairseq.ops.linear import float32_library, linear
from tests.common import assert_as_accurate_as

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def choose(monkeypatch):
    """Force a library, or processors without bfloat16."""

    def force(library=None, bfloat16=None):
        if library:
            monkeypatch.setattr(module, "float32_library", lambda: library)
        if bfloat16 is not None:
            monkeypatch.setattr(module, "has_native_bfloat16", lambda: bfloat16)

    return force


def with_grads(function, x, weight, bias, grad):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], grad)]


def problem(shape, outputs, dtype, bias):
    x, grad = torch.randn(*shape).to(dtype), torch.randn(*shape[:-1], outputs).to(dtype)
    return x, torch.randn(outputs, shape[-1]).to(dtype), torch.randn(outputs).to(dtype) if bias else None, grad


@onednn
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 40), (0, 8), (130, 64), (7,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("library", ["mkl", "onednn"])
def test_libraries_agree(shape, bias, library, choose):
    choose(library)
    tensors = problem(shape, 24, torch.float32, bias)
    fast, stock = with_grads(linear, *tensors), with_grads(F.linear, *tensors)
    truth = with_grads(F.linear, *(None if t is None else t.double() for t in tensors))
    for a, b, c in zip(fast, stock, truth, strict=True):
        assert_as_accurate_as(a, b, c)


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_by_float32_is_the_rounded_exact_product(bias, choose):
    choose(bfloat16=False)
    tensors = problem((3, 5, 40), 24, torch.bfloat16, bias)
    fast = with_grads(linear, *tensors)
    exact = with_grads(F.linear, *(None if t is None else t.double() for t in tensors))
    for found, wanted in zip(fast, exact, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted.bfloat16(), rtol=2**-7, atol=1e-6)


@onednn
@pytest.mark.parametrize("library", ["mkl", "onednn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(library, dtype, choose):
    choose(library, bfloat16=False)
    x, weight, bias, grad = problem((2, 3, 8), 6, dtype, True)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.fairseq.linear.default, (*leaves,))
    torch.library.opcheck(torch.ops.fairseq.linear.default, (*leaves[:2], None))
    for wanted in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(torch.ops.fairseq.linear_backward.default, (grad, x, weight, *wanted))


def test_gradcheck():
    leaves = [t.double().requires_grad_() for t in problem((2, 3, 4), 5, torch.float32, True)[:3]]
    assert torch.autograd.gradcheck(torch.ops.fairseq.linear, leaves)


@onednn
def test_compiled_graph(choose):
    choose("onednn")
    *tensors, grad = problem((3, 4, 8), 6, torch.float32, True)
    torch._dynamo.reset()
    quick = torch.compile(torch.ops.fairseq.linear, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_grads(quick, *tensors, grad), with_grads(F.linear, *tensors, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_only_what_is_wanted_is_computed(choose):
    choose(bfloat16=False)
    layer = Linear(4, 3).bfloat16().requires_grad_(False)
    x = torch.randn(2, 4).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.fixture
def undecided(monkeypatch):
    for name in ("FAIRSEQ_LINEAR", "FAIRSEQ_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    float32_library.cache_clear()
    yield monkeypatch
    float32_library.cache_clear()


@onednn
@pytest.mark.parametrize(
    ("vendor", "asked", "native", "expected"),
    [
        ("GenuineIntel", None, None, "mkl"),
        ("AuthenticAMD", None, None, "onednn"),
        ("", None, None, "mkl"),
        ("AuthenticAMD", "mkl", None, "mkl"),
        ("GenuineIntel", "onednn", None, "onednn"),
        ("AuthenticAMD", None, "0", "mkl"),
    ],
)
def test_choice(vendor, asked, native, expected, undecided):
    undecided.setattr(module, "processor_vendor", lambda: vendor)
    for name, value in (("FAIRSEQ_LINEAR", asked), ("FAIRSEQ_NATIVE", native)):
        if value is not None:
            undecided.setenv(name, value)
    assert float32_library() == expected


def test_unknown_choice(undecided):
    undecided.setenv("FAIRSEQ_LINEAR", "fast")
    with pytest.raises(ConfigError, match="mkl or onednn, but is 'fast'"):
        float32_library()
