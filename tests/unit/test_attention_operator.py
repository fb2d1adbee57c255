"""``torch.ops.fairseq.attention_forward``, whatever the score term: the gradient of row sums, autocast, types without a kernel."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import attention, library, score_terms
from fairseq.ops.alibi_attention import alibi_attention

compiled = pytest.mark.skipif(not library.load(), reason=str(library.why_unavailable()))
SEED = torch.tensor(11)
OPERATOR = torch.ops.fairseq.attention_forward.default


def problem(dtype=torch.float64, tokens=7):
    q, k, v, grad = (torch.randn(2, 3, tokens, 4, dtype=dtype) for _ in range(4))
    mask = torch.zeros(2, tokens, dtype=torch.bool)
    mask[0, -2:] = True
    return [q, k, v], grad, mask


TERMS = [term for term in score_terms.TERMS if not term.startswith("band_")]  # the others are for CUDA devices alone


def parameters_of(term, dtype=torch.float64, tokens=7):
    if term == "band":
        return [torch.randn(2, 3, *size, dtype=dtype) for size in ((tokens, 5), (tokens, 3), (2, tokens))]
    return [torch.rand(3, dtype=dtype)]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_row_sums_have_a_gradient(term, p):
    """gradcheck takes both outputs, and the operator agrees with what autograd makes of its reference."""
    tensors, _, mask = problem()
    leaves = [x.requires_grad_() for x in (*tensors, *(parameters_of(term) if term == "band" else []))]
    fixed = [] if term == "band" else parameters_of(term)

    def function(operator):
        return lambda q, k, v, *tables: operator(q, k, v, term, [*tables, *fixed], mask, p, SEED)

    assert torch.autograd.gradcheck(function(OPERATOR), leaves)
    for upstream in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        found = []
        for operator in (OPERATOR, attention.attention_forward_reference):
            out, lse = function(operator)(*leaves)
            loss = upstream[0] * out.sin().sum() + upstream[1] * lse.sin().sum()
            found.append(torch.autograd.grad(loss, leaves))
        torch.testing.assert_close(*found)


def test_row_sums_alone():
    (q, k, v), _, mask = problem()
    q.requires_grad_()
    _, lse = OPERATOR(q, k, v, "alibi", parameters_of("alibi"), mask, 0.0, SEED)
    (dq,) = torch.autograd.grad(lse.sum(), q)
    assert float(dq.abs().max()) > 0.01


@compiled
@pytest.mark.parametrize("term", TERMS)
def test_row_kernels_take_the_gradient_of_row_sums(term):
    tensors, grad, mask = problem(torch.float32)
    extras = (term, parameters_of(term, torch.float32), mask, 0.3, SEED)
    out, lse = attention.attention_forward_reference(*tensors, *extras)
    arguments = (grad, torch.randn_like(lse), *tensors, out, lse, *extras)
    found = torch.ops.fairseq_host.attention_rows_backward(*arguments, 1 << 25)
    torch.testing.assert_close(tuple(found), attention.attention_backward_reference(*arguments), rtol=1e-4, atol=1e-5)


def implementations():
    yield "operator", OPERATOR, torch.ops.fairseq.attention_backward.default
    yield "reference", attention.attention_forward_reference, attention.attention_backward_reference
    if library.load():
        host = torch.ops.fairseq_host
        yield (
            "rows",
            lambda *x: host.attention_rows_forward(*x, 1 << 25),
            lambda *x: host.attention_rows_backward(*x, 1 << 25),
        )


@pytest.mark.parametrize(("forward", "backward"), [pytest.param(*x[1:], id=x[0]) for x in implementations()])
@pytest.mark.parametrize("term", TERMS)
def test_autocast_changes_nothing(forward, backward, term):
    """Tensors are taken in the type they come in; products of the library would be made half as wide."""
    tensors, grad, mask = problem(torch.float32, tokens=40)
    extras = (term, parameters_of(term, torch.float32, tokens=40), mask, 0.3, SEED)

    def run():
        out, lse = forward(*tensors, *extras)
        *found, tables = backward(grad, None, *tensors, out, lse, *extras)
        return [out, lse, *found, *tables]

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, cast, strict=True))


def test_autocast_around_a_layer():
    tensors, grad, mask = problem(torch.float32)
    leaves = [x.requires_grad_() for x in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = OPERATOR(*leaves, "alibi", parameters_of("alibi", torch.float32), mask, 0.3, SEED)
        assert out.dtype == torch.float32
        torch.autograd.grad(out, leaves, grad)


@compiled
@pytest.mark.parametrize("term", TERMS)
def test_types_without_a_kernel_go_to_the_reference(term):
    """What float64 does on CUDA."""
    tensors, grad, mask = problem()
    extras = (term, parameters_of(term), mask, 0.3, SEED)
    out, lse = torch.ops.fairseq_host.attention_forward_by_reference(*tensors, *extras)
    torch.testing.assert_close((out, lse), attention.attention_forward_reference(*tensors, *extras), rtol=0, atol=0)
    arguments = (grad, torch.ones_like(lse), *tensors, out, lse, *extras)
    found = torch.ops.fairseq_host.attention_backward_by_reference(*arguments)
    torch.testing.assert_close(tuple(found), attention.attention_backward_reference(*arguments), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_device_in_autocast(term, dtype, device):
    tensors, grad, mask = problem(dtype, tokens=40)
    extras = (term, parameters_of(term, dtype, tokens=40), mask, 0.3, SEED)
    out, lse = attention.attention_forward_reference(*tensors, *extras)
    wanted = attention.attention_backward_reference(grad, torch.ones_like(lse), *tensors, out, lse, *extras)
    tensors, (grad, mask) = [x.to(device) for x in tensors], (grad.to(device), mask.to(device))
    extras = (term, [x.to(device) for x in extras[1]], mask, 0.3, SEED.to(device))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = OPERATOR(*tensors, *extras)
        torch.testing.assert_close([x.cpu() for x in found], [out, lse], rtol=1e-4, atol=1e-4)
        backward = torch.ops.fairseq.attention_backward.default
        *found, tables = backward(grad, torch.ones_like(found[1]), *tensors, *found, *extras)
    for a, b in zip([*found, *tables], [*wanted[:3], *wanted[3]], strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_swallowed(name: str, value: float, dtype: torch.dtype) -> None:
    """A run that diverges must be seen to do so."""
    tensors = {key: torch.randn(1, 2, 70, 16).to(dtype).requires_grad_() for key in "qkv"}
    with torch.no_grad():
        tensors[name][0, 1, 30, 3] = value
    out = alibi_attention(*tensors.values(), torch.tensor([0.5, 0.1]))
    assert out[0, 1, 30].isfinite().all().item() is False and out[0, 0].isfinite().all()
    gradients = torch.autograd.grad(out.sum(), tuple(tensors.values()))
    assert not all(gradient[0, 1].isfinite().all() for gradient in gradients)
