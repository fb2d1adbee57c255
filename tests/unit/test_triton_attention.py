"""Flash-style attention in Triton: against the reference implementation in the interpreter; the operator without it."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import flash_attention as flash
from fairseq.ops.alibi_attention import forward_reference
from fairseq.ops.dropout_mask import dropout_factors
from fairseq.ops.flash_attention import flash_attention
from fairseq.ops.flash_reference import FlashExtras, PackedBatch, flash_backward_reference, flash_forward_reference
from tests.triton_tools import in_interpreter, interpret, needs_triton, outside

SEED = torch.tensor(-(77 << 40) + 5)
SLOPES = torch.tensor([0.5, 0.17, 0.0])
FORMS = {"none": (None, False), "symmetrical": (SLOPES, False), "asymmetrical": (SLOPES, True)}
TOLERANCE = {torch.float32: 4e-6, torch.float16: 1e-2}  # the output is rounded before the backward pass sums it


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


def problem(batch, tokens, width, dtype=torch.float32, heads=3):
    """q, k, v and a gradient of the output, as the projections of a layer leave them."""
    return [torch.randn(batch, tokens, heads, width).to(dtype).transpose(1, 2) for _ in range(4)]


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def forward_and_backward(tensors, *extra, reference=False):
    """The output, the logarithms of the rows' sums, and the gradients of whatever is there."""
    *qkv, grad = (x.float() for x in tensors) if reference else tensors
    if reference:
        extras = FlashExtras(*extra)
        out, lse = flash_forward_reference(*qkv, extras)
        gradients = flash_backward_reference(grad, *qkv, out, lse, extras)
    else:
        out, lse = flash._forward(*qkv, *extra)
        gradients = flash._backward(grad, *qkv, out, lse, *extra)
    tables = [x is not None for x in FlashExtras(*extra)[-2:]]
    return [out, lse, *(x for x, there in zip(gradients, (True, True, True, *tables), strict=True) if there)]


def assert_equals_reference(tensors, *extra):
    """Of the kernels' results; tables come in the type of `tensors`."""
    found, wanted = forward_and_backward(tensors, *extra), forward_and_backward(tensors, *extra, reference=True)
    dtype = tensors[0].dtype
    assert torch.equal(found[1].isinf(), wanted[1].isinf())
    found[1], wanted[1] = (x.masked_fill(x.isinf(), 0) for x in (found[1], wanted[1]))
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == (dtype if a is not found[1] else torch.float32)
        # Of sums like a gradient that should be zero, only the rounding is left.
        assert float((a - b).abs().max()) <= TOLERANCE[dtype] * max(1.0, float(b.abs().max()))
    return found


# The interpreter multiplies the bits of bfloat16 numbers as if they were integers (3.7 and 3.9 do): float16 is tried.
@in_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_padded_sequences(form, p, dtype):
    found = assert_equals_reference(problem(4, 71, 32, dtype), *FORMS[form], int32(71, 50, 1, 0), None, p, SEED)
    assert not any(x[3].any() for x in (found[0], *found[2:]))


@in_interpreter
@pytest.mark.parametrize("width", [1, 32, 40, 64, 80, 96, 128])
def test_widths_of_heads(width):
    assert_equals_reference(problem(1, 70, width), *FORMS["asymmetrical"], None, None, 0.1, SEED)


@in_interpreter
@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 129])
def test_lengths_of_batches(tokens):
    tensors = problem(1, tokens, 32)
    if tokens:
        assert_equals_reference(tensors, *FORMS["symmetrical"], None, None, 0.1, SEED)
    else:
        assert forward_and_backward(tensors, None, False, None, None, 0.0, SEED)[2].shape == tensors[0].shape


@in_interpreter
@pytest.mark.parametrize("form", ["none", "asymmetrical"])
def test_packed_sequences_are_the_padded_ones(form):
    """Bit for bit, with lengths 0 and 1 among them, and first and last."""
    lengths = int32(0, 5, 1, 70, 0)
    starts = torch.cat([int32(0), lengths.cumsum(0, dtype=torch.int32)])
    packed = problem(1, int(starts[-1]), 16)
    batch = PackedBatch.of(packed[0].size(2), None, starts)
    found = assert_equals_reference(packed, *FORMS[form], None, starts, 0.2, SEED)
    padded = forward_and_backward([batch.pad(x) for x in packed], *FORMS[form], lengths, None, 0.2, SEED)
    assert all(torch.equal(a, batch.pack(b)) for a, b in zip(found, padded, strict=True))
    assert flash_attention(*(x[:, :, :0] for x in packed[:3]), starts=int32(0, 0)).numel() == 0


@in_interpreter
@pytest.mark.parametrize("name", [0, 1, 2])
@pytest.mark.parametrize("tokens", [70, 1100])  # without and with tiles that are left out
def test_a_number_that_is_none_is_not_swallowed(name, tokens):
    """A run that diverges must be seen to do so."""
    tensors = problem(1, tokens, 16, heads=1)
    tensors[name][0, 0, 30, 3] = torch.nan
    out, _, *gradients = forward_and_backward(tensors, SLOPES[:1], True, None, None, 0.0, SEED)
    assert out[0, 0, 30].isnan().any() and all(not gradient.isfinite().all() for gradient in gradients[:2])


@in_interpreter
def test_tensors_may_lie_anyhow():
    q, k, v, grad = problem(2, 9, 32)
    joint = torch.randn(2, 9, 3, 3, 32)  # q, k and v of one projection
    tensors = [joint[:, :, n].transpose(1, 2) for n in range(3)]
    same = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
    extra = (*FORMS["asymmetrical"], None, None, 0.2, SEED)
    expected = forward_and_backward([*same, grad.contiguous()], *extra)
    reversed_channels = [x.flip(-1).contiguous().mT.contiguous().mT.flip(-1) for x in (q, k, v)]
    for other in ([*tensors, grad], [*same, grad.mT.contiguous().mT]):
        assert all(torch.equal(a, b) for a, b in zip(forward_and_backward(other, *extra), expected, strict=True))
    assert_equals_reference([*reversed_channels, grad], *extra)


@in_interpreter
@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_dropout_has_the_bits_of_the_reference(p):
    """Where all keys weigh the same, and values tell which key they are of, the output is the mask."""
    tokens, width = 77, 128
    q = torch.zeros(2, 3, tokens, width)
    out = flash_attention(q, q, torch.eye(tokens, width).expand(q.shape), dropout_p=p, seed=SEED)
    factors = dropout_factors(torch.ones(2, 3, tokens, tokens), p, SEED)
    assert torch.equal(out[..., :tokens] > 0, factors > 0)
    torch.testing.assert_close(out[..., :tokens] * tokens, factors)


@in_interpreter
def test_tiles_that_are_left_out_change_nothing(monkeypatch):
    """Not one bit: what they hold is zero. Values beyond the reach are overwritten, so they really are left out."""
    tensors = [0.2 * x for x in problem(2, 200, 16, heads=2)]
    steep = torch.tensor([9.0, 2.0])
    extra = (steep, True, int32(200, 70), None, 0.1, SEED)
    everything = forward_and_backward(tensors, *extra)
    monkeypatch.setattr(flash, "FAR", 0)
    assert all(torch.equal(a, b) for a, b in zip(forward_and_backward(tensors, *extra), everything, strict=True))
    q, k, v = (x[:1, :1].clone() for x in tensors[:3])
    v[:, :, :64] = torch.nan
    out = flash_attention(q, k, v, steep[:1])
    assert out[:, :, :64].isnan().all() and not out[:, :, 128:].isnan().any()
    q[:, :, 180:] *= 1e6  # these may find a key at any distance
    assert flash_attention(q, k, v, steep[:1])[:, :, 128:].isnan().any()


@in_interpreter
def test_derivative_and_compiled_graph():
    q, k, v, grad = problem(2, 33, 16)
    counts = int32(20, 33)

    def function(q, k, v):
        return flash_attention(q, k, v, SLOPES, True, token_counts=counts, dropout_p=0.2, seed=SEED)

    padding = torch.arange(33) >= counts[:, None]
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(forward_reference(*leaves, SLOPES, True, padding, 0.2, SEED)[0], leaves, grad)
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        found = torch.autograd.grad(run(*leaves), leaves, grad)
        torch.testing.assert_close(found, wanted, atol=4e-6, rtol=1e-4)


@outside
def test_operator_keeps_its_promises_to_torch():
    """Without Triton's interpreter the reference runs: schema, fake tensors, derivative, for all forms."""
    q, k, v, _ = (x.double() for x in problem(1, 6, 4))
    operator = torch.ops.fairseq.flash_attention_forward.default
    for counts, starts in ((None, None), (int32(4), None), (None, int32(0, 2, 2, 6))):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        extra = (SLOPES.clone(), True, counts, starts, 0.2, torch.tensor(3))
        torch.library.opcheck(operator, (*leaves, *extra), test_utils=("test_schema", "test_faketensor"))
        assert torch.autograd.gradcheck(lambda *qkv, extra=extra: operator(*qkv, *extra)[0], leaves)
        out, lse = operator(*leaves, *extra)
        assert out.requires_grad and not lse.requires_grad


@outside
@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": torch.zeros(2, 3, 5, 4)}, r"must be \(B, H, T, D\) of one floating-point type"),
        ({"v": torch.zeros(2, 3, 6, 4, dtype=torch.float16)}, "of one floating-point type"),
        ({"slopes": torch.ones(2)}, r"`slopes` must be float32 of shape \(3,\)"),
        ({"token_counts": torch.ones(2)}, r"`token_counts` must be int32 of shape \(2,\)"),
        ({"starts": torch.ones(2)}, r"`starts` must be int32 of shape \(B \+ 1,\)"),
        ({"starts": int32(0, 6)}, r"`starts` is for packed sequences \(1, H, N, D\)"),
        ({"dropout_p": 1.5}, "`dropout_p` must be between 0 and 1"),
    ],
)
def test_what_does_not_fit(change, message):
    given = {name: torch.zeros(2, 3, 6, 4) for name in "qkv"} | change
    with pytest.raises(ValueError, match=message):
        flash_attention(**given)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tokens", [1, 130, 2000])
def test_kernels_on_a_device(form, dtype, tokens, device):
    tensors = [x.to(device) for x in problem(2, tokens, 64, dtype)]
    slopes, asymmetrical = FORMS[form]
    slopes = None if slopes is None else slopes.to(device)
    counts = int32(tokens, tokens // 2).to(device)
    extra = (slopes, asymmetrical, counts, None, 0.1, SEED.to(device))
    found, again = (forward_and_backward(tensors, *extra) for _ in range(2))
    wanted = forward_and_backward(tensors, *extra, reference=True)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for a, b in zip(found, wanted, strict=True):
        a, b = (x.masked_fill(x.isinf(), 0).float() for x in (a, b))
        limit = max(4 * torch.finfo(dtype).eps, 1e-5)
        assert float((a - b).abs().max()) <= limit * max(1.0, float(b.abs().max()))
