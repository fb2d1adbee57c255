"""Attention with tables over offsets in Triton: against the reference implementation in the interpreter; the operator without it."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import flash_attention as flash
from fairseq.ops.band_attention import band_attention
from fairseq.ops.flash_attention import flash_attention
from fairseq.ops.flash_reference import PackedBatch
from tests.triton_tools import INTERPRETED, in_interpreter, interpret, needs_triton, outside
from tests.unit.test_triton_attention import (
    FORMS,
    SEED,
    SLOPES,
    assert_equals_reference,
    forward_and_backward,
    int32,
    problem,
)

BOTH = ("query", "key")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that short sequences have many; the interpreter is slow."""
    if INTERPRETED:
        monkeypatch.setattr(flash, "blocks", lambda *unused: flash.Blocks(32, 16, 4, 1))


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


def tables(like, reach, which=BOTH, dtype=None):
    """By query and by key, each None unless it is in ``which``; ``like`` is (B, H, T, D)."""
    shape = (*like.shape[:3], 2 * reach + 1)
    return [torch.randn(shape).to(dtype or like.dtype) if name in which else None for name in BOTH]


@in_interpreter
@pytest.mark.parametrize(("which", "p"), [(("query",), 0.0), (("key",), 0.2), (BOTH, 0.2)])
def test_padded_sequences(which, p):
    tensors = problem(4, 34, 16, heads=1)
    extra = (None, False, int32(34, 20, 1, 0), None, p, SEED, *tables(tensors[0], 2, which))
    found = assert_equals_reference(tensors, *extra)
    assert len(found) == 5 + len(which) and not any(x[3].any() for x in (found[0], *found[2:]))


@in_interpreter
@pytest.mark.parametrize(("tokens", "reach"), [(1, 1), (2, 5), (20, 9), (32, 1), (34, 2)])
def test_reaches_and_lengths(tokens, reach):
    """Bands within a tile, over several, and beyond the sequence."""
    tensors = problem(1, tokens, 16, heads=1)
    assert_equals_reference(tensors, None, False, None, None, 0.1, SEED, *tables(tensors[0], reach))


@in_interpreter
def test_together_with_linear_biases():
    tensors = problem(1, 40, 16, heads=1)
    assert_equals_reference(tensors, SLOPES[:1], True, int32(33), None, 0.1, SEED, *tables(tensors[0], 2))


@in_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_and_tables_of_another_type(dtype):
    tensors = problem(1, 40, 32, torch.float16, heads=1)
    found = forward_and_backward(tensors, *FORMS["none"], None, None, 0.1, SEED, *tables(tensors[0], 2, dtype=dtype))
    assert all(x.dtype == dtype for x in found[5:])
    assert_equals_reference(tensors, *FORMS["none"], None, None, 0.1, SEED, *tables(tensors[0], 2))


@in_interpreter
@pytest.mark.parametrize("alibi", [None, SLOPES[:1]])
def test_packed_sequences_are_the_padded_ones(alibi):
    """Bit for bit, with lengths 0 and 1 among them, and first and last."""
    lengths = int32(0, 5, 1, 34, 0)
    starts = torch.cat([int32(0), lengths.cumsum(0, dtype=torch.int32)])
    packed = problem(1, int(starts[-1]), 16, heads=1)
    batch = PackedBatch.of(packed[0].size(2), None, starts)
    given = tables(packed[0], 2)
    found = assert_equals_reference(packed, alibi, True, None, starts, 0.2, SEED, *given)
    padded = [[batch.pad(x) for x in part] for part in (packed, given)]
    wanted = forward_and_backward(padded[0], alibi, True, lengths, None, 0.2, SEED, *padded[1])
    assert all(torch.equal(a, batch.pack(b)) for a, b in zip(found, wanted, strict=True))


@in_interpreter
def test_is_band_attention():
    """The operator that the CPU has, fixed tables included: outputs and all gradients."""
    q, k, v, grad = problem(2, 40, 16, heads=1)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, *tables(q, 3))]
    counts = int32(40, 21)
    padding = torch.arange(40) >= counts[:, None]
    seed = SEED.clone()
    wanted = band_attention(*leaves, None, padding, 0.2, seed)
    found = flash_attention(
        *leaves[:3], token_counts=counts, dropout_p=0.2, seed=seed, query_table=leaves[3], key_table=leaves[4]
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(x, leaves, grad) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@in_interpreter
def test_strided_tables_and_a_number_that_is_none():
    tensors = problem(1, 33, 16, heads=1)
    given = tables(tensors[0], 2)
    found = forward_and_backward(tensors, None, False, None, None, 0.0, SEED, *given)
    turned = [x.mT.contiguous().mT for x in given]
    again = forward_and_backward(tensors, None, False, None, None, 0.0, SEED, *turned)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    given[0][0, 0, 30, 2] = torch.nan
    out, *_, dquery, _ = forward_and_backward(tensors, None, False, None, None, 0.0, SEED, *given)
    assert out[0, 0, 30].isnan().any() and not dquery[0, 0, 30].isfinite().all()


@outside
def test_operator_keeps_its_promises_to_torch():
    """Without Triton's interpreter the reference runs: schema, fake tensors, derivative, for all forms."""
    q, k, v, _ = (x.double() for x in problem(1, 6, 4))
    operator = torch.ops.fairseq.flash_attention_forward.default
    for slopes, counts, starts in ((None, int32(4), None), (SLOPES.clone(), None, int32(0, 2, 2, 6))):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, *tables(q, 2))]
        extra = (slopes, True, counts, starts, 0.2, torch.tensor(3))
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator, (*leaves[:3], *extra, *leaves[3:]), test_utils=checks)
        assert torch.autograd.gradcheck(lambda *x, extra=extra: operator(*x[:3], *extra, *x[3:])[0], leaves)


@outside
def test_compiled_graph():
    q, k, v, grad = problem(2, 17, 8)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, *tables(q, 3))]

    def function(q, k, v, by_query, by_key):
        return flash_attention(q, k, v, dropout_p=0.2, seed=SEED, query_table=by_query, key_table=by_key)

    found = [
        torch.autograd.grad(run(*leaves), leaves, grad)
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    ]
    torch.testing.assert_close(*found)


@outside
@pytest.mark.parametrize("shapes", [[(1, 3, 6, 4)], [(1, 3, 6, 1)], [(3, 5)], [(1, 3, 6, 5), (1, 3, 6, 3)]])
def test_what_does_not_fit(shapes):
    x = torch.zeros(1, 3, 6, 4)
    given = dict(zip(("query_table", "key_table"), map(torch.zeros, shapes), strict=False))
    with pytest.raises(ValueError, match=r"tables must be floating-point \(1, 3, 6\) x \(2w \+ 1\)"):
        flash_attention(x, x, x, **given)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 130, 2000])
@pytest.mark.parametrize("reach", [1, 8, 300])
def test_kernels_on_a_device(dtype, tokens, reach, device):
    tensors = [x.to(device) for x in problem(2, tokens, 64, dtype)]
    counts = int32(tokens, tokens // 2).to(device)
    given = [x.to(device) for x in tables(tensors[0].cpu(), reach)]
    extra = (None, False, counts, None, 0.1, SEED.to(device), *given)
    found, again = (forward_and_backward(tensors, *extra) for _ in range(2))
    wanted = forward_and_backward(tensors, *extra, reference=True)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for a, b in zip(found, wanted, strict=True):
        a, b = (x.masked_fill(x.isinf(), 0).float() for x in (a, b))
        limit = max(4 * torch.finfo(dtype).eps, 1e-5)
        assert float((a - b).abs().max()) <= limit * max(1.0, float(b.abs().max()))
