"""Attention that multiplies bfloat16: as accurate as eager attention in that type, with such products and without."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import library
from fairseq.ops.alibi_attention import alibi_attention
from fairseq.ops.dropout_mask import dropout_factors
from fairseq.ops.linear import has_native_bfloat16
from fairseq.ops.score_terms import alibi_bias
from tests.common import assert_as_accurate_as

pytestmark = pytest.mark.skipif(not library.load(), reason=str(library.why_unavailable()))
HOST = torch.ops.fairseq_host
SEED = torch.tensor(5)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def products(request):
    """With and without products of bfloat16; without instructions for them both are the same."""
    HOST.want_bfloat16_products(request.param)
    yield request.param
    HOST.want_bfloat16_products(True)


def problem(batch, heads, tokens, width, spare=0):
    """q, k, v and a gradient of the output; `spare` numbers between rows make these begin anywhere."""
    torch.manual_seed(3)
    row = torch.randn(4, batch, tokens, heads, width + spare).bfloat16()[..., spare:].transpose(2, 3)
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[:, tokens - tokens // 5 :] = True
    padding[1:, : tokens // 4] = True
    return row, torch.rand(heads), padding


def eager(q, k, v, slopes, padding, factors):
    scores = (q * q.size(-1) ** -0.5) @ k.mT + alibi_bias(slopes.double(), q.size(2), True).to(q.dtype)
    scores = scores.masked_fill(padding[:, None, None], torch.finfo(q.dtype).min)
    return (torch.softmax(scores, -1) * factors.to(q.dtype)) @ v


def with_grads(function, q, k, v, grad):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize(
    ("shape", "spare"),
    [((1, 1, 1, 16), 0), ((2, 3, 66, 32), 1), ((1, 2, 577, 48), 0), ((2, 1, 130, 128), 2), ((1, 2, 1040, 64), 0)],
)
def test_as_accurate_as_eager(shape, spare, p, products):
    (q, k, v, grad), slopes, padding = problem(*shape, spare)
    factors = dropout_factors(q.new_empty(*q.shape[:3], q.size(2), dtype=torch.float64), p, SEED)
    fast = with_grads(lambda *x: alibi_attention(*x, slopes, True, padding, p, SEED), q, k, v, grad)
    plain = with_grads(lambda *x: eager(*x, slopes, padding, factors), q, k, v, grad)
    truth = with_grads(lambda *x: eager(*x, slopes, padding, factors), *(x.double() for x in (q, k, v, grad)))
    for name, a, b, c in zip(("output", "dq", "dk", "dv"), fast, plain, truth, strict=True):
        if name in ("dq", "dk") and shape[2] == 1:  # zero but for rounding
            assert float(a.abs().max()) < 4 * torch.finfo(a.dtype).eps
        else:
            assert_as_accurate_as(a, b, c, name=name)


def test_results_do_not_depend_on_threads(products):
    (q, k, v, grad), slopes, padding = problem(2, 3, 200, 32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(with_grads(lambda *x: alibi_attention(*x, slopes, True, padding, 0.1, 7), q, k, v, grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_infinite_numbers_stay(products):
    (q, k, v, _), slopes, padding = problem(1, 1, 40, 16)
    v[0, 0, 3, 2] = torch.inf
    out = alibi_attention(q, k, v, slopes, False, padding)
    assert bool(out[..., 2].isinf().all()) and bool(out[..., 3:].isfinite().all())


def test_used_where_the_processor_has_them():
    assert HOST.has_bfloat16_products() == has_native_bfloat16()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not HOST.has_bfloat16_products()
        (q, k, v, _), slopes, padding = problem(1, 1, 20, 16)
        assert bool(alibi_attention(q, k, v, slopes, False, padding).isfinite().all())
