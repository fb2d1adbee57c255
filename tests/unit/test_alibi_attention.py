"""Attention with linear biases: compiled kernels and their lanes against the reference implementation and plain eager attention."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.alibi_attention import (
    _philox,
    alibi_attention,
    alibi_bias,
    backward_reference,
    dropout_factors,
    forward_reference,
)
from tests.common import ROOT, assert_as_accurate_as

compiled = pytest.mark.skipif(not library.load(), reason=str(library.why_unavailable()))
OPERATOR = torch.ops.fairseq.alibi_attention
SEED = (77 << 33) + 5
# (B, H, T, D): one token, odd lengths, several blocks of keys, widths that are not multiples of 8, 1 to 12 heads
SHAPES = [(1, 1, 1, 1), (2, 3, 7, 5), (2, 12, 33, 8), (1, 5, 65, 16), (2, 2, 577, 13), (1, 1, 1030, 64), (0, 2, 3, 4)]
# Scores a chunk: a row (too slow for long sequences), some rows or heads, everything.
ROWS_AT_ONCE = [(shape, chunk) for shape in SHAPES for chunk in (1, 5000, 1 << 25) if chunk > 1 or shape[2] <= 100]


def problem(shape, dtype=torch.float32, padding=True):
    batch, heads, tokens, width = shape
    q, k, v, grad = (torch.randn(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(4))
    mask = torch.zeros(batch, tokens, dtype=torch.bool)
    mask[:1, tokens - tokens // 3 :] = True
    mask[1:, : tokens // 4] = True  # on the left too
    if batch > 1:
        mask[-1] = True  # nothing but padding
    slopes = torch.rand(heads) if heads > 1 else torch.tensor([0.25])
    return q, k, v, grad, slopes, mask if padding else None


def with_grads(function, q, k, v, grad) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def plain(slopes, asymmetrical, mask, dtype, factors=None):
    """Eager attention in ``dtype``, as a model would write it; the yardstick."""

    def attend(q, k, v):
        q, k, v = (x.to(dtype) for x in (q, k, v))
        scores = (q * q.size(-1) ** -0.5) @ k.mT + alibi_bias(slopes.to(torch.float64), q.size(-2), asymmetrical).to(
            dtype
        )
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None], torch.finfo(dtype).min)
        weights = torch.softmax(scores, -1)
        if mask is not None:
            weights = weights.masked_fill(mask[:, None, None], 0)
        return (weights if factors is None else weights * factors.to(dtype)) @ v

    return attend


def check(fast, eager, truth) -> None:
    """The output and the gradients of q, k and v by the yardstick.

    In float32 the factor is 4: the kept logarithm of the row sum is rounded at the size of the scores, where eager keeps
    probabilities, and sums run in another order. With one token the true gradients of q and k are zero, and so are eager's.
    """
    for name, a, b, c in zip(("output", "dq", "dk", "dv"), fast, eager, truth, strict=True):
        assert bool(a.isfinite().all())
        if name in ("dq", "dk") and c.size(-2) == 1:
            assert float(a.abs().max()) < 4 * torch.finfo(a.dtype).eps
        else:
            assert_as_accurate_as(a, b, c, 4 if a.dtype == torch.float32 else 2, name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("asymmetrical", "padding", "p"), [(False, False, 0.0), (True, True, 0.0), (True, True, 0.3)])
def test_operator_is_as_accurate_as_eager(shape, dtype, asymmetrical, padding, p):
    q, k, v, grad, slopes, mask = problem(shape, dtype, padding)
    factors = (
        dropout_factors(q.new_empty(*shape[:3], shape[2], dtype=torch.float64), p, torch.tensor(SEED)) if p else None
    )
    fast = with_grads(lambda *x: OPERATOR(*x, slopes, asymmetrical, mask, p, SEED), q, k, v, grad)
    eager = with_grads(plain(slopes, asymmetrical, mask, dtype, factors), q, k, v, grad)
    truth = with_grads(
        plain(slopes, asymmetrical, mask, torch.float64, factors), q.double(), k.double(), v.double(), grad.double()
    )
    if dtype == torch.float64:
        torch.testing.assert_close(fast, truth)
    else:
        check(fast, eager, truth)
    assert all(x.dtype == dtype for x in fast)
    if padding and shape[0] > 1:
        assert all(float(x[-1].abs().max()) == 0 for x in fast)
    assert fast[0].transpose(1, 2).is_contiguous()


def test_twin_by_hand():
    slopes = torch.tensor([2.0, 0.5], dtype=torch.float64)
    assert alibi_bias(slopes, 3, False)[0].tolist() == [[0, -2, -4], [-2, 0, -2], [-4, -2, 0]]
    assert alibi_bias(slopes, 3, True)[1].tolist() == [[0, -0.25, -0.75], [-0.5, 0, -0.25], [-1, -0.5, 0]]
    q = k = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    v = torch.eye(3, 4, dtype=torch.float64).expand(1, 2, 3, 4)
    out, lse = forward_reference(q, k, v, slopes, False, None, 0.0, torch.tensor(0))
    row = torch.tensor([1, 0.1353352832, 0.0183156389], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, 0, :3], row / row.sum())
    torch.testing.assert_close(lse[0, 0, 0], row.sum().log())


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(p):
    q, k, v, _, slopes, mask = problem((2, 3, 6, 3), torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: OPERATOR(*x, slopes, True, mask, p, SEED), leaves)
    assert torch.autograd.gradcheck(
        lambda *x: forward_reference(*x, slopes, True, mask, p, torch.tensor(SEED))[0], leaves
    )
    out, lse = forward_reference(*leaves, slopes, True, mask, p, torch.tensor(SEED))
    grad = torch.randn_like(out)
    by_hand = backward_reference(grad, q, k, v, out, lse, slopes, True, mask, p, torch.tensor(SEED))
    torch.testing.assert_close(by_hand, torch.autograd.grad(out, leaves, grad))


@compiled
@pytest.mark.parametrize(("shape", "chunk"), ROWS_AT_ONCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_row_kernels_lane_after_lane(shape, dtype, p, chunk):
    """What runs on a GPU, with its lanes one after the other: rows shorter and longer than 32 lanes, not multiples."""
    batch, heads, tokens, width = shape
    q, k, v, grad, slopes, mask = problem(shape, dtype)
    extras = (slopes, True, mask, p, torch.tensor(SEED))
    out, lse = torch.ops.fairseq_host.attention_rows_forward(q, k, v, *extras, chunk)
    grads = torch.ops.fairseq_host.attention_rows_backward(grad, q, k, v, out, lse, *extras, chunk)
    wide = [x.double() for x in (q, k, v)]
    true_out, true_lse = forward_reference(*wide, *extras)
    truth = [true_out, *backward_reference(grad.double(), *wide, true_out, true_lse, *extras)]
    factors = dropout_factors(q.new_empty(batch, heads, tokens, tokens, dtype=torch.float64), p, extras[-1])
    eager = with_grads(plain(slopes, True, mask, dtype, factors), q, k, v, grad)
    torch.testing.assert_close(lse, true_lse.float(), rtol=1e-4, atol=1e-4)
    check((out, *grads), eager, truth)


def test_philox_known_answers():
    """Of the reference implementation (Random123, kat_vectors)."""
    for counter, key, expected in (
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        words = _philox([torch.tensor(x) for x in counter], *(torch.tensor(x) for x in key))
        assert [int(word) for word in words] == expected


def test_dropout_bits_by_hand():
    """A counter decides about 8 keys that follow each other, as its words lie in memory."""
    p, sequence, head, i = 0.5, 1, 2, 4
    factors = dropout_factors(torch.empty(2, 3, 6, 21), p, torch.tensor(SEED))
    for j in range(21):
        counter = [torch.tensor(x) for x in (j // 8, i, sequence * 3 + head, 0)]
        words = _philox(counter, torch.tensor(SEED & 0xFFFFFFFF), torch.tensor(SEED >> 32))
        number = int.from_bytes(b"".join(int(word).to_bytes(4, "little") for word in words)[j % 8 * 2 :][:2], "little")
        assert float(factors[sequence, head, i, j]) == (2.0 if number >= p * 65536 else 0.0)


@compiled
def test_every_form_of_the_generator_gives_the_same_bits():
    forms = torch.ops.fairseq_host.random_forms()
    assert forms[-1] == "plain"
    for first, row, head, seed in ((0, 0, 0, 0), (96, 7, 9, SEED), ((1 << 32) - 40, (1 << 32) - 1, (1 << 32) - 1, -2)):
        counter = [torch.arange(first, first + 64) & 0xFFFFFFFF, *(torch.tensor(x) for x in (row, head, 0))]
        words = _philox(counter, *(torch.tensor(x & 0xFFFFFFFF) for x in (seed, seed >> 32)))
        expected = torch.stack([(word >> shift) & 0xFFFF for word in words for shift in (0, 16)], -1).flatten()
        for form in forms:
            bits = torch.ops.fairseq_host.random_bits(form, first, 64, row, head, seed)
            assert torch.equal(bits.long() & 0xFFFF, expected), form


def test_dropout_statistics_and_reproducibility():
    shape, p = (2, 3, 300, 300), 0.1
    like = torch.empty(shape)
    factors = dropout_factors(like, p, torch.tensor(SEED))
    kept = (factors > 0).double()
    assert abs(float(kept.mean()) - (1 - p)) < 4 * (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(float(factors.max()) - 1 / (1 - p)) < 1e-4
    for dim in range(4):  # every place on an axis has its share
        rates = kept.movedim(dim, 0).flatten(1).mean(1)
        spread = (p * (1 - p) / (kept.numel() / shape[dim])) ** 0.5
        assert float((rates - (1 - p)).abs().max()) < 5 * spread
    other = dropout_factors(like, p, torch.tensor(SEED + 1)) > 0
    agreement = float((other == (factors > 0)).double().mean())
    assert abs(agreement - (1 - 2 * p * (1 - p))) < 0.005
    neighbours = float((kept[..., 1:] == kept[..., :-1]).double().mean())
    assert abs(neighbours - (1 - 2 * p * (1 - p))) < 0.005
    assert not dropout_factors(like, 1.0, torch.tensor(1)).any()


def test_dropout_does_not_depend_on_batch_or_threads():
    q, k, v, _, slopes, _ = problem((3, 4, 300, 8))
    whole = OPERATOR(q, k, v, slopes, True, None, 0.2, 9)
    assert torch.equal(whole, OPERATOR(q, k, v, slopes, True, None, 0.2, 9))
    assert torch.equal(whole[:1], OPERATOR(q[:1], k[:1], v[:1], slopes, True, None, 0.2, 9))
    assert not torch.equal(whole, OPERATOR(q, k, v, slopes, True, None, 0.2, 10))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(whole, OPERATOR(q, k, v, slopes, True, None, 0.2, 9))
    finally:
        torch.set_num_threads(threads)
    exact = OPERATOR(q, k, v, slopes, True, None, 0.0, 0)
    mean = torch.stack([OPERATOR(q, k, v, slopes, True, None, 0.2, seed) for seed in range(200)]).mean(0)
    assert float((mean - exact).abs().mean()) < 0.02
    assert not OPERATOR(q, k, v, slopes, True, None, 1.0, 3).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    q, k, v, _, slopes, mask = problem((2, 3, 9, 5), dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(OPERATOR.default, (*leaves, slopes, True, mask, 0.25, SEED))
    inner = torch.ops.fairseq.alibi_attention_forward.default
    torch.library.opcheck(inner, (*leaves, slopes, False, None, 0.0, torch.tensor(SEED)))
    out, lse = inner(q, k, v, slopes, True, mask, 0.25, torch.tensor(SEED))
    backward = torch.ops.fairseq.alibi_attention_backward.default
    torch.library.opcheck(backward, (out, q, k, v, out, lse, slopes, True, mask, 0.25, torch.tensor(SEED)))


def test_compiled_graph():
    q, k, v, grad, slopes, mask = problem((2, 3, 17, 8))

    def function(q, k, v):
        seed = torch.randint(1 << 62, ())
        return alibi_attention(q * 2, k, v, slopes, True, mask, 0.0, seed) + OPERATOR(
            q, k, v, slopes, True, mask, 0.3, 7
        )

    torch._dynamo.reset()
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_grads(quick, q, k, v, grad), with_grads(function, q, k, v, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 4, 4)}, r"one shape \(B, H, T, D\).*\(1, 2, 4, 4\)"),
        ({"v": torch.zeros(1, 2, 3, 4).double()}, "one floating-point type"),
        ({"slopes": torch.zeros(3)}, "one number for each of 2 heads"),
        ({"key_padding_mask": torch.zeros(1, 3)}, r"bool of shape \(1, 3\), but is torch.float32"),
        ({"dropout_p": 1.5}, "between 0 and 1, but is 1.5"),
    ],
)
def test_mistakes(change, message):
    arguments = dict.fromkeys("qkv", torch.zeros(1, 2, 3, 4)) | {"slopes": torch.zeros(2)} | change
    with pytest.raises(ValueError, match=message):
        alibi_attention(**arguments)


@compiled
def test_compiled_kernels_check_before_they_touch_memory():
    x, slopes, seed = torch.zeros(1, 2, 3, 4), torch.zeros(2), torch.tensor(0)
    forward = torch.ops.fairseq.alibi_attention_forward
    for arguments in (
        (x, x[..., :2], x, slopes, True, None, 0.0, seed),
        (x, x, x, slopes[:1], True, None, 0.0, seed),
        (x, x, x, slopes, True, torch.zeros(1, 2, dtype=torch.bool), 0.0, seed),
        (x, x, x, slopes, True, None, 2.0, seed),
        (x.int(), x.int(), x.int(), slopes, True, None, 0.0, seed),
    ):
        with pytest.raises(RuntimeError):
            forward(*arguments)


def test_without_the_compiled_library():
    code = (
        "import torch\nfrom fairseq.ops import library\nfrom fairseq.ops.alibi_attention import alibi_attention\n"
        "x = torch.arange(12.).view(1, 1, 3, 4)\n"
        "print(library.load(), library.why_unavailable(), library.compiled_for('alibi_attention_forward', 'cpu'))\n"
        "print(alibi_attention(x, x, x, torch.ones(1), dropout_p=0.5, seed=1).tolist())"
    )
    environment = {**os.environ, "FAIRSEQ_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "False FAIRSEQ_NATIVE=0 is set in the environment False"
    x = torch.arange(12.0).view(1, 1, 3, 4)
    found = torch.tensor(eval(second, {"__builtins__": {}}))
    torch.testing.assert_close(found, alibi_attention(x, x, x, torch.ones(1), dropout_p=0.5, seed=1))


def test_a_library_that_does_not_fit_is_explained(tmp_path, monkeypatch):
    (tmp_path / "_torch.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "_HERE", tmp_path)
    monkeypatch.delenv("FAIRSEQ_NATIVE", raising=False)
    library._load.cache_clear()
    try:
        assert not library.load() and "_torch.so does not fit" in str(library.why_unavailable())
        (tmp_path / "_torch.so").rename(tmp_path / "_torch.cpython-39-x86_64-linux-gnu.so")  # of another Python
        library._load.cache_clear()
        assert "not built" in str(library.why_unavailable())
    finally:
        library._load.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_device_equals_reference(shape, dtype, device):
    assert library.compiled_for("alibi_attention_forward", "cuda"), library.why_unavailable()
    q, k, v, grad, slopes, mask = (x.to(device) for x in problem(shape, dtype))
    factors = dropout_factors(
        q.new_empty(*shape[:3], shape[2], dtype=torch.float64), 0.3, torch.tensor(SEED, device=device)
    )
    fast = with_grads(lambda *x: OPERATOR(*x, slopes, True, mask, 0.3, SEED), q, k, v, grad)
    eager = with_grads(plain(slopes, True, mask, dtype, factors), q, k, v, grad)
    truth = with_grads(
        plain(slopes, True, mask, torch.float64, factors), q.double(), k.double(), v.double(), grad.double()
    )
    check(fast, eager, truth)
