"""The attention layer: torch's own as the reference, autocast, names."""

from __future__ import annotations

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.packing import some
from fairseq.modules.slots import EncoderContext


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa", "fused"])
def test_under_autocast(backend):
    layer = MultiheadSelfAttention(12, 3, dropout=0.5, backend=backend)
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
    with pytest.raises(ConfigError, match="attention backend"):
        MultiheadSelfAttention(4, 2, backend="fusd")


def test_padding_is_kept_only_if_there_is_some():
    assert some(torch.zeros(2, 3, dtype=torch.bool)) is None
    assert some(torch.ones(2, 3, dtype=torch.bool)) is not None
