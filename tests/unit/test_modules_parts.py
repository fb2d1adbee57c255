"""Encoder parts: dropout, linear maps, activations, positions, layers, initialization."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq.compat.models import LayerNorm
from fairseq.errors import ConfigError, DataError
from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.dropout import dropout, dropout_add, dropout_add_norm, rounded
from fairseq.modules.encoder import EncoderLayer
from fairseq.modules.feed_forward import ACTIVATIONS, FeedForward, get_activation_fn
from fairseq.modules.initialization import init_bert_params
from fairseq.modules.positions import (
    LearnedPositions,
    SinusoidalPositions,
    TokenEmbedding,
    position_ids_from_padding,
    sinusoidal_table,
)
from fairseq.modules.slots import EncoderContext


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_dropout_keeps_the_right_fraction(p):
    kept = (dropout(torch.ones(101, 997), p, training=True) != 0).float()
    deviation = abs(float(kept.mean()) - (1 - p))
    assert deviation < 4 * math.sqrt(p * (1 - p) / kept.numel()) + 2**-15


def test_dropout_has_no_structure():
    mask = (dropout(torch.ones(4096, 64), 0.5, training=True) != 0).float() - 0.5
    for neighbours in (mask[:, 1:] * mask[:, :-1], mask[1:] * mask[:-1]):
        assert abs(float(neighbours.mean()) * 4) < 0.01
    assert float((mask.mean(dim=0).abs() * 2).max()) < 0.08


@pytest.mark.parametrize("training", [True, False])
def test_residual_and_norm_in_one_pass(training):
    """Whatever the norm is, the result is that of its parts with the same seed."""
    x, base = torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    plain = nn.LayerNorm(24)
    nn.init.normal_(plain.weight)

    class Other(nn.LayerNorm):
        pass

    other = Other(24)
    other.load_state_dict(plain.state_dict())
    hooked = copy.deepcopy(plain)
    hooked.register_forward_hook(lambda *_: None)
    results = []
    for norm in (plain, other, hooked):
        torch.manual_seed(5)
        results.append(dropout_add_norm(x, base, norm, 0.3, training))
    torch.manual_seed(5)
    by_hand = plain(base + dropout(x, 0.3, training))
    for result in results:
        torch.testing.assert_close(result, by_hand)
    torch.manual_seed(5)
    torch.testing.assert_close(dropout_add(x, base, 0.3, training), base + dropout_by_seed(x, 5, training))


def dropout_by_seed(x, seed, training):
    torch.manual_seed(seed)
    return dropout(x, 0.3, training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_scales_what_it_keeps(dtype):
    x = torch.randn(37, 11, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.25, training=True)
    y.backward(torch.ones_like(y))
    kept = y != 0
    scale = 1 / (1 - rounded(0.25))
    torch.testing.assert_close(y[kept], x.detach()[kept] * scale)
    torch.testing.assert_close(x.grad, kept.to(dtype) * scale)


def test_dropout_limits_and_seeds():
    x = torch.randn(5, 3)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x
    assert float(dropout(x, 1.0, training=True).abs().sum()) == 0
    assert dropout(torch.empty(0, 3), 0.5, training=True).shape == (0, 3)
    torch.manual_seed(2)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(2)
    assert torch.equal(first, dropout(x, 0.5, training=True))


@pytest.mark.parametrize(("dtype", "tail"), [(torch.bfloat16, 0.0), (torch.float16, 1e-5)])
def test_gelu_is_computed_in_float32(dtype, tail):
    x = (torch.randn(1000) * 3).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    y, expected = ACTIVATIONS["gelu"](x), F.gelu(wide)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(y, expected.to(dtype), rtol=0, atol=tail)
    (grad,) = torch.autograd.grad(y, x, upstream)
    (expected_grad,) = torch.autograd.grad(expected, wide, upstream.float())
    torch.testing.assert_close(grad, expected_grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=max(tail, 1e-7))


def test_activations():
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(get_activation_fn("gelu_fast")(x), get_activation_fn("gelu_accurate")(x))
    assert torch.equal(get_activation_fn("linear")(x), x)
    with pytest.raises(ConfigError, match="did you mean 'gelu_fast'"):
        get_activation_fn("gelu_fst")


def test_position_ids_count_non_padding_tokens():
    padding = torch.tensor([[False, False, False], [False, True, True], [True, False, False]])
    assert position_ids_from_padding(padding, 1).tolist() == [[2, 3, 4], [2, 1, 1], [1, 2, 3]]


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 13])
def test_sinusoidal_table(dim):
    table = sinusoidal_table(6, dim, 1)
    assert table.shape == (6, dim) and float(table[1].abs().sum()) == 0
    half = dim // 2
    for row in (0, 2, 5):
        for i in range(half):
            frequency = math.exp(-i * math.log(10000) / max(half - 1, 1))
            assert table[row, i] == pytest.approx(math.sin(row * frequency), abs=1e-6)
            assert table[row, half + i] == pytest.approx(math.cos(row * frequency), abs=1e-6)
    if dim % 2:
        assert float(table[:, -1].abs().sum()) == 0


def test_sinusoidal_positions_stay_exact_through_half_precision():
    positions = SinusoidalPositions(10, 6, 1)
    ids = torch.arange(2, 10).unsqueeze(0)
    exact = positions(ids)
    assert positions.half()(ids).dtype == torch.float16
    assert torch.equal(positions.float()(ids), exact)
    assert list(positions.state_dict()) == ["_float_tensor"]
    copied = copy.deepcopy(positions)
    far = torch.tensor([[50]])
    copied.check(far, explicit=True)
    assert torch.equal(copied(far), sinusoidal_table(51, 6, 1)[50:].unsqueeze(0))


def test_learned_positions():
    positions = LearnedPositions(10, 6, 1)
    assert positions.weight.shape == (10, 6) and positions.max_positions == 8
    assert not bool(positions.weight[1].any())
    positions.check(torch.full((1, 30), 9), explicit=False)
    with pytest.raises(DataError, match="9 tokens does not fit.*at most 8 tokens"):
        positions.check(torch.full((1, 30), 10), explicit=False)
    with pytest.raises(DataError, match="position id -1"):
        positions.check(torch.full((1, 3), -1), explicit=True)


def test_token_embedding():
    embedding = TokenEmbedding(5, 4, 1, normalize=True)
    vectors = embedding(torch.tensor([[0, 2]]))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(1, 2))
    assert not bool(embedding(torch.tensor([1])).any())


class Halving(nn.Module):
    """A channel mixer of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.scale


def layer_of(channel_mixer, pre_norm=False):
    return EncoderLayer(
        MultiheadSelfAttention(8, 2), channel_mixer, nn.LayerNorm(8), nn.LayerNorm(8), pre_norm=pre_norm
    )


def test_layer_names():
    standard = layer_of(FeedForward(8, 16, activation_dropout=0.5))
    order = [name.partition(".")[0] for name, _ in standard.named_parameters()]
    assert list(dict.fromkeys(order)) == ["self_attn", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]
    other = layer_of(Halving())
    assert "channel_mixer.scale" in other.state_dict()


def test_layer_mode_reaches_the_feed_forward_block():
    layer = layer_of(FeedForward(8, 16, activation_dropout=0.9), pre_norm=True)
    x = torch.randn(1, 3, 8)
    for copied in (layer, copy.deepcopy(layer)):
        assert not torch.equal(copied(x, EncoderContext()), copied(x, EncoderContext()))
        copied.eval()
        assert torch.equal(copied(x, EncoderContext()), copied(x, EncoderContext()))
    assert copied.channel_mixer.fc1 is copied.fc1 and copied.fc1 is not layer.fc1


def test_layer_formulas():
    x, context = torch.randn(2, 3, 8), EncoderContext()
    for pre_norm in (False, True):
        layer = layer_of(FeedForward(8, 16), pre_norm).eval()
        ffn = lambda y, layer=layer: layer.fc2(F.gelu(layer.fc1(y)))  # noqa: E731
        if pre_norm:
            y = x + layer.self_attn(layer.self_attn_layer_norm(x), context)
            expected = y + ffn(layer.final_layer_norm(y))
        else:
            y = layer.self_attn_layer_norm(x + layer.self_attn(x, context))
            expected = layer.final_layer_norm(y + ffn(y))
        torch.testing.assert_close(layer(x, context), expected)


def test_initialization():
    model = nn.Sequential(TokenEmbedding(400, 64, 1), nn.Linear(64, 300), MultiheadSelfAttention(64, 4), LayerNorm(64))
    model.apply(init_bert_params)
    embedding, linear, attention, norm = model
    for weight in (embedding.weight, linear.weight, attention.q_proj.weight, attention.out_proj.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not bool(embedding.weight[1].any()) and not bool(linear.bias.any())
    assert torch.equal(norm.weight, torch.ones(64)) and norm.eps == 1e-5
