"""Attention: the quick paths against the readable twin, padding, dropout."""

from __future__ import annotations

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.modules import blocked_attention
from fairseq.modules.attention import MultiheadSelfAttention, attend, attend_eager
from fairseq.modules.blocked_attention import attend_blocked
from fairseq.modules.context import EncoderContext
from tests.common import assert_as_accurate_as

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 5), (3, 2, 33, 8), (2, 5, 20, 3)]


class Given:
    """A bias that is a tensor."""

    def __init__(self, bias):
        self.bias = bias

    def dense(self, tokens, device, dtype):
        return self.bias.to(device, dtype)


def inputs(shape, dtype=torch.float32):
    batch, heads, tokens, width = shape
    q, k, v = (torch.randn(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(3))
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[0, tokens - tokens // 3 :] = tokens > 2
    padding[-1] = batch > 1  # a sequence that is all padding
    return q, k, v, padding, torch.randn(heads, tokens, tokens, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_padding", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("block", [1, 40, 1 << 21])
def test_paths_agree_with_the_readable_twin(shape, with_padding, with_bias, block, monkeypatch):
    monkeypatch.setattr(blocked_attention, "BLOCK_ELEMENTS", block)
    q, k, v, padding, bias = inputs(shape, torch.float64)
    context = EncoderContext(padding if with_padding else None, Given(bias) if with_bias else None)
    upstream = torch.randn_like(q)

    def run(function):
        tensors = [t.clone().requires_grad_() for t in (q, k, v)]
        out = function(*tensors)
        return out, torch.autograd.grad(out, tensors, upstream)

    expected, expected_grads = run(lambda *x: attend_eager(*x, context, 0.0))
    assert bool(expected.isfinite().all())
    if with_padding and shape[0] > 1:
        assert float(expected.detach()[-1].abs().max()) == 0
    paths = {
        "attend": lambda *x: attend(*x, context, 0.0),
        "blocked": lambda *x: attend_blocked(*x, context.dense_bias(x[0]), context.padding, 0.0),
    }
    for name, path in paths.items():
        found, grads = run(path)
        torch.testing.assert_close(found, expected, msg=name)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, b, msg=name)


def test_blocked_gradients_with_dropout():
    q, k, v, padding, bias = inputs((2, 2, 5, 3), torch.float64)
    tensors = [t.clone().requires_grad_() for t in (q, k, v, bias)]

    def seeded(q, k, v, bias):
        torch.manual_seed(4)
        return attend_blocked(q, k, v, bias, padding, 0.4)

    assert torch.autograd.gradcheck(seeded, tensors)


def test_blocked_dropout_is_reproducible_and_right_on_average():
    q, k, v, _, _ = inputs((1, 2, 6, 4))
    exact = attend_eager(q, k, v, EncoderContext(), 0.0)
    torch.manual_seed(3)
    first = attend_blocked(q, k, v, None, None, 0.3)
    torch.manual_seed(3)
    assert torch.equal(first, attend_blocked(q, k, v, None, None, 0.3))
    assert not torch.equal(first, attend_blocked(q, k, v, None, None, 0.3))
    mean = torch.stack([attend_blocked(q, k, v, None, None, 0.3) for _ in range(3000)]).mean(0)
    assert float((mean - exact).abs().max()) < 0.06
    assert float(attend_blocked(q, k, v, None, None, 1.0).abs().max()) == 0


@pytest.mark.parametrize("native", [True, False])
def test_blocked_bfloat16_is_as_accurate_as_the_plain_path(native, monkeypatch):
    monkeypatch.setattr(blocked_attention, "has_native_bfloat16", lambda: native)
    q, k, v, padding, bias = inputs((2, 3, 17, 8))
    truth = attend_eager(q.double(), k.double(), v.double(), EncoderContext(padding, Given(bias)), 0.0)
    low = [t.bfloat16() for t in (q, k, v, bias)]
    context = EncoderContext(padding, Given(low[3]))
    assert_as_accurate_as(
        attend_blocked(*low[:3], low[3], padding, 0.0), attend_eager(*low[:3], context, 0.0), truth, name="attention"
    )


def test_blocked_under_autocast():
    layer = MultiheadSelfAttention(12, 3, dropout=0.5)
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, EncoderContext())
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and bool(x.grad.isfinite().all())


def test_layer_matches_torch():
    layer = MultiheadSelfAttention(12, 3).eval()
    x = torch.randn(2, 5, 12)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected, _ = torch.nn.functional.multi_head_attention_forward(
        x.transpose(0, 1),
        x.transpose(0, 1),
        x.transpose(0, 1),
        12,
        3,
        torch.empty(0),
        torch.cat([layer.q_proj.bias, layer.k_proj.bias, layer.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        layer.out_proj.weight,
        layer.out_proj.bias,
        key_padding_mask=padding,
        use_separate_proj_weight=True,
        q_proj_weight=layer.q_proj.weight,
        k_proj_weight=layer.k_proj.weight,
        v_proj_weight=layer.v_proj.weight,
    )
    torch.testing.assert_close(layer(x, EncoderContext(padding)), expected.transpose(0, 1))


def test_registration_order():
    names = [name for name, _ in MultiheadSelfAttention(4, 2).named_parameters()]
    assert names == [f"{p}_proj.{kind}" for p in ("k", "v", "q", "out") for kind in ("weight", "bias")]
    with pytest.raises(ConfigError, match="multiple"):
        MultiheadSelfAttention(4, 3)


def test_context_keeps_padding_only_if_there_is_some():
    assert EncoderContext.of(torch.zeros(2, 3, dtype=torch.bool)).padding is None
    assert EncoderContext.of(torch.ones(2, 3, dtype=torch.bool)).padding is not None
    assert EncoderContext.of(None).key_mask() is None
