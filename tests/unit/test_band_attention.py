"""Attention with tables over offsets: compiled kernels, their lanes and the reference against plain eager attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.band_attention import band_attention
from fairseq.ops.dropout_mask import dropout_factors
from tests.common import assert_as_accurate_as

compiled = pytest.mark.skipif(not library.load(), reason=str(library.why_unavailable()))
SEED = (5 << 35) + 3
# (B, H, T, D, w): one token, T below the reach, at its edge, odd, several blocks of rows and of keys
SHAPES = [(1, 1, 1, 2, 1), (2, 3, 4, 5, 6), (2, 2, 9, 4, 8), (2, 3, 67, 8, 5), (1, 2, 577, 6, 8), (2, 1, 1029, 4, 1)]
WHICH = [which for n in (1, 2, 3) for which in itertools.combinations(("query", "key", "fixed"), n)]


def problem(shape, which=("query", "key", "fixed"), dtype=torch.float64, padding=True):
    """q, k, v and three tables (or None), the mask, and the gradient of the output."""
    batch, heads, tokens, width, reach = shape
    q, k, v, grad = (torch.randn(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(4))
    sizes = {"query": (batch, heads, tokens), "key": (batch, heads, tokens), "fixed": (heads,)}
    tables = [torch.randn(*sizes[n], 2 * reach + 1, dtype=dtype) if n in which else None for n in sizes]
    mask = torch.zeros(batch, tokens, dtype=torch.bool)
    mask[:1, tokens - tokens // 3 :] = True
    if batch > 1:
        mask[-1] = True  # nothing but padding
    return [q, k, v, *tables], mask if padding else None, grad


def plain(q, k, v, query, key, fixed, mask, factors=None):
    """Eager attention with loops over offsets, as the formula reads."""
    tokens = q.size(2)
    scores = q @ k.mT * q.size(-1) ** -0.5
    at = torch.arange(tokens)
    for table, offset in ((query, at - at[:, None]), (key, at[:, None] - at), (fixed, at - at[:, None])):
        if table is None:
            continue
        reach = table.size(-1) // 2
        if table is fixed:
            table = table[None, :, None]
        for o in range(-reach, reach + 1):
            number = table[..., o + reach][..., None]
            number = number.mT if table is key else number
            scores = scores + torch.where(offset.clamp(-reach, reach) == o, number, torch.zeros((), dtype=q.dtype))
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None], torch.finfo(q.dtype).min)
    weights = torch.softmax(scores, -1)
    if mask is not None:
        weights = weights.masked_fill(mask[:, None, None], 0)
    return (weights if factors is None else weights * factors.to(q.dtype)) @ v


def with_grads(function, inputs, grad) -> list[Tensor]:
    """The output and the gradients of all inputs that are there."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, [x for x in leaves if x is not None], grad)]


def widened(inputs):
    return [None if x is None else x.double() for x in inputs]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("padding", "p"), [(False, 0.0), (True, 0.3)])
def test_equals_eager_in_float64(shape, which, padding, p):
    inputs, mask, grad = problem(shape, which, padding=padding)
    factors = dropout_factors(grad.new_empty(*shape[:3], shape[2]), p, torch.tensor(SEED))
    fast = with_grads(lambda *x: band_attention(*x, mask, p, SEED), inputs, grad)
    truth = with_grads(lambda *x: plain(*x, mask, factors), inputs, grad)
    torch.testing.assert_close(fast, truth)


@pytest.mark.parametrize("shape", SHAPES[1:])  # with one token the true gradients are zero, and no yardstick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_as_accurate_as_eager(shape, dtype):
    inputs, mask, grad = problem(shape, dtype=dtype)
    factors = dropout_factors(grad.new_empty(*shape[:3], shape[2]), 0.2, torch.tensor(SEED))
    fast = with_grads(lambda *x: band_attention(*x, mask, 0.2, SEED), inputs, grad)
    eager = with_grads(lambda *x: plain(*x, mask, factors), inputs, grad)
    truth = with_grads(lambda *x: plain(*x, mask, factors), widened(inputs), grad.double())
    for name, a, b, c in zip(("output", "q", "k", "v", "query", "key", "fixed"), fast, eager, truth, strict=True):
        assert a.dtype == dtype
        assert_as_accurate_as(a, b, c, 4, name)


@compiled
@pytest.mark.parametrize("chunk", [1, 700, 1 << 25])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[2] < 600])
@pytest.mark.parametrize("which", [("query",), ("key",), ("query", "key")])
def test_row_kernels_lane_after_lane(shape, which, chunk):
    """What runs on a GPU: every table's gradient, whatever the chunks of rows and heads."""
    if chunk == 1 and shape[2] > 100:
        pytest.skip("too slow a row at a time")
    inputs, mask, grad = problem(shape, which, torch.float32)
    q, k, v, query, key, _ = inputs
    absent = torch.empty(0)
    parts = [absent, absent] if key is None else [key[..., 1:-1], torch.stack([key[..., 0], key[..., -1]], 2)]
    extras = ("band", [absent if query is None else query, *parts], mask, 0.2, torch.tensor(SEED))
    out, lse = torch.ops.fairseq_host.attention_rows_forward(q, k, v, *extras, chunk)
    dq, dk, dv, found = torch.ops.fairseq_host.attention_rows_backward(grad, None, q, k, v, out, lse, *extras, chunk)
    tables = [] if query is None else [found[0]]
    tables += [] if key is None else [torch.cat([found[2][:, :, 0, :, None], found[1], found[2][:, :, 1, :, None]], -1)]
    factors = dropout_factors(q.new_empty(*shape[:3], shape[2]), 0.2, torch.tensor(SEED))
    truth = with_grads(lambda *x: plain(*x, mask, factors), widened(inputs), grad.double())
    for a, b in zip((out, dq, dk, dv, *tables), truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("which", WHICH)
def test_gradcheck(which):
    inputs, mask, _ = problem((2, 2, 7, 3, 2), which)
    given = [x is not None for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs if x is not None]

    def function(*x):
        rest = iter(x)
        return band_attention(*(next(rest) if there else None for there in given), mask, 0.25, SEED)

    assert torch.autograd.gradcheck(function, leaves)


def test_opcheck():
    (q, k, v, query, key, _), mask, grad = problem((2, 2, 7, 3, 2))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    parameters = [query, key[..., 1:-1], torch.stack([key[..., 0], key[..., -1]], 2)]
    parameters = [x.detach().clone().requires_grad_() for x in parameters]
    extras = ("band", parameters, mask, 0.25, torch.tensor(SEED))
    torch.library.opcheck(torch.ops.fairseq.attention_forward.default, (*leaves, *extras))
    packed = ([3, 4], "band", [x[:1].detach().requires_grad_() for x in parameters], 0.25, torch.tensor(SEED))
    first = [x[:1].detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.fairseq.packed_attention_forward.default, (*first, *packed))


def test_ends_hold_for_all_that_is_further_away():
    """Zeros at the ends: nothing beyond the reach. Very negative ends: nothing but the reach."""
    q = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    v = torch.eye(9, dtype=torch.float64)[None, None]
    table = torch.tensor([[0.0, 1.0, 2.0, 3.0, 0.0]], dtype=torch.float64)
    row = band_attention(q, q, v, fixed_table=table)[0, 0, 4]
    wanted = torch.tensor([0, 0, 0, 1, 2, 3, 0, 0, 0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(row, wanted)
    table = torch.tensor([[-1e4, 1.0, 2.0, 3.0, -1e4]], dtype=torch.float64)
    row = band_attention(q, q, v, fixed_table=table)[0, 0, 4]
    assert torch.equal(row > 0, (wanted > wanted.min()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_sequences_are_those_alone(dtype):
    inputs, _, grad = problem((1, 2, 20, 4, 3), dtype=dtype)
    lengths = [1, 12, 7]
    fast = with_grads(lambda *x: band_attention(*x, dropout_p=0.2, seed=7, lengths=lengths), inputs, grad)

    def alone(q, k, v, query, key, fixed):
        parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v, query, key)), strict=True)
        found = [band_attention(*part, fixed, dropout_p=0.2, seed=7 + n) for n, part in enumerate(parts)]
        return torch.cat(found, dim=2)

    torch.testing.assert_close(fast, with_grads(alone, inputs, grad))


def test_gradients_do_not_depend_on_threads():
    inputs, mask, grad = problem((2, 2, 300, 8, 5), dtype=torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(with_grads(lambda *x: band_attention(*x, mask, 0.2, SEED), inputs, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_graph():
    inputs, mask, grad = problem((2, 2, 17, 8, 3))

    def function(*x):
        return band_attention(*x, mask, 0.3, torch.full((), SEED))

    torch._dynamo.reset()
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_grads(quick, inputs, grad), with_grads(function, inputs, grad))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"v": torch.zeros(1, 2, 5, 4)}, "must have one shape"),
        ({"fixed_table": torch.zeros(2, 5), "dropout_p": 2.0}, "between 0 and 1"),
        ({}, r"must have 2w \+ 1 columns.*but have \[\]"),
        ({"fixed_table": torch.zeros(2, 4)}, r"have \[4\]"),
        ({"fixed_table": torch.zeros(2, 1)}, r"have \[1\]"),
        ({"fixed_table": torch.zeros(2, 3), "key_table": torch.zeros(1, 2, 6, 5)}, r"have \[3, 5\]"),
        ({"query_table": torch.zeros(2, 6, 5)}, r"`query_table` must be floating-point of shape \(1, 2, 6, 5\)"),
        ({"key_table": torch.zeros(1, 2, 6, 5).int()}, "but is torch.int32"),
        ({"fixed_table": torch.zeros(2, 5), "lengths": [3, 3], "key_padding_mask": torch.zeros(1, 6).bool()}, "B = 1"),
    ],
)
def test_mistakes(tables, message):
    x = torch.zeros(1, 2, 6, 4)
    with pytest.raises(ValueError, match=message):
        band_attention(**{"q": x, "k": x, "v": x, **tables})


@compiled
def test_compiled_kernels_check_before_they_touch_memory():
    x, none, seed = torch.zeros(1, 2, 6, 4), torch.empty(0), torch.tensor(0)
    table, inside, ends = torch.zeros(1, 2, 6, 5), torch.zeros(1, 2, 6, 3), torch.zeros(1, 2, 2, 6)
    forward = torch.ops.fairseq.attention_forward
    for parameters in (
        [none, none, none],
        [table[..., :4], none, none],
        [table[:, :, :5], none, none],
        [none, inside, none],
        [none, inside, ends[..., :5]],
        [table, torch.zeros(1, 2, 6, 5), ends],
        [table.int(), none, none],
    ):
        with pytest.raises(RuntimeError):
            forward(x, x, x, "band", parameters, None, 0.0, seed)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_device_is_as_accurate_as_eager(shape, dtype, device):
    assert library.compiled_for("attention_forward", "cuda"), library.why_unavailable()
    inputs, mask, grad = problem(shape, dtype=dtype)
    factors = dropout_factors(grad.new_empty(*shape[:3], shape[2]), 0.2, torch.tensor(SEED))
    there = [x.to(device) for x in inputs]
    fast = with_grads(lambda *x: band_attention(*x, mask.to(device), 0.2, SEED), there, grad.to(device))
    eager = with_grads(lambda *x: plain(*x, mask, factors), inputs, grad)
    truth = with_grads(lambda *x: plain(*x, mask, factors), widened(inputs), grad.double())
    for name, a, b, c in zip(("output", "q", "k", "v", "query", "key", "fixed"), fast, eager, truth, strict=True):
        assert_as_accurate_as(a.cpu(), b, c, 4, name)
