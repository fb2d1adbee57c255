"""The slots of an encoder: every variant from the same numbers, what variants declare, and biases of each layer."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from fairseq.errors import ConfigError
from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.attention_backends import attend
from fairseq.modules.attention_bias import ALiBi
from fairseq.modules.encoder import EncoderLayer
from fairseq.modules.initialization import init_bert_params
from fairseq.modules.slots import EncoderContext, EncoderShape
from fairseq.overrides import supports
from fairseq.registry import ATTENTION_BIASES, CHANNEL_MIXERS, LM_HEADS, POSITIONS, TOKEN_MIXERS
from tests.unit.roberta import PAD, small_model, some_tokens, without_dropout

SHAPE = EncoderShape(dim=8, heads=2, ffn_dim=12, layers=2, max_positions=16, padding_idx=PAD, norm_eps=1e-12)
ALIBI = {"encoder_alibi": True, "no_token_positional_embeddings": True}


def layer_of(mixer: str = "self_attention", channels: str = "feed_forward", bias: str = "none", pre_norm: bool = False):
    token_mixer = TOKEN_MIXERS.get(mixer)(SHAPE, attention_bias=ATTENTION_BIASES.get(bias)(SHAPE))
    channel_mixer = CHANNEL_MIXERS.get(channels)(SHAPE)
    return EncoderLayer(token_mixer, channel_mixer, SHAPE.norm(), SHAPE.norm(), pre_norm=pre_norm)


@pytest.mark.parametrize("name", LM_HEADS.names())
def test_language_model_heads(name):
    weight = nn.Parameter(torch.randn(10, 8))
    head = LM_HEADS.get(name)(SHAPE, 10, weight)
    masked = torch.tensor([[True, False, True]])
    features = torch.randn(1, 3, 8)
    assert head(features).shape == (1, 3, 10) and head.weight is weight
    logits = head(features, masked)
    loss = head(features, masked, targets=torch.tensor([1, 2]))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.tensor([1, 2]), reduction="sum"))
    assert supports(head, "takes_targets", "forward")
    assert {module.eps for module in head.modules() if isinstance(module, nn.LayerNorm)} <= {1e-12}


def test_heads_with_weights_of_their_own():
    assert LM_HEADS.get("roberta")(SHAPE, 10, None).weight.shape == (10, 8)
    with pytest.raises(ConfigError, match="compares with the token embeddings"):
        LM_HEADS.get("clap")(SHAPE, 10, None)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_layer_without_a_channel_mixer(pre_norm):
    layer = layer_of(channels="none", pre_norm=pre_norm).eval()
    assert {name.partition(".")[0] for name in layer.state_dict()} == {"self_attn", "self_attn_layer_norm"}
    x, norm = torch.randn(2, 3, 8), layer.self_attn_layer_norm
    mixed = layer.self_attn(norm(x) if pre_norm else x, EncoderContext())
    torch.testing.assert_close(layer(x, EncoderContext()), x + mixed if pre_norm else norm(x + mixed))
    assert norm.eps == 1e-12 and layer.train().training


class Parent:
    able = True

    def one(self): ...

    def two(self): ...


class Silent(Parent):
    def one(self): ...


class Saying(Parent):
    able = True

    def one(self): ...


def test_overriding_a_method_takes_its_abilities_away_unless_said_again():
    assert supports(Parent(), "able", "one", "two")
    assert not supports(Silent(), "able", "one") and supports(Silent(), "able", "two")
    assert supports(Saying(), "able", "one", "two")
    replaced = Parent()
    replaced.one = lambda: None
    assert not supports(replaced, "able", "one") and not supports(Parent(), "able", "three")


def test_modules_initialize_themselves():
    class Own(nn.Linear):
        def draw_weights(self):
            nn.init.ones_(self.weight)

    model = nn.Sequential(Own(3, 4), nn.Linear(4, 3)).apply(init_bert_params)
    assert float(model[0].weight.detach().min()) == 1.0 and float(model[1].weight.detach().abs().max()) < 0.2


# Biases


def test_equal_biases_make_one_table_a_pass(monkeypatch):
    made = []
    dense = ALiBi.dense
    monkeypatch.setattr(ALiBi, "dense", lambda self, *given: made.append(self) or dense(self, *given))
    model = small_model(**ALIBI, attention_backend="sdpa").eval()
    biases = [layer.self_attn.attention_bias for layer in model.encoder.sentence_encoder.layers]
    assert len(set(biases)) == 1 and len({id(bias) for bias in biases}) == 3 and biases[0] != ALiBi(4)
    model(some_tokens())
    assert len(made) == 1
    model.encoder.sentence_encoder.layers[1].self_attn.attention_bias = ALiBi(3, asymmetrical=True)
    model(some_tokens())
    assert len(made) == 3


class Distances(nn.Module):
    """A bias with parameters: a number for each head and distance."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(heads, 32, dtype=torch.float64))

    def dense(self, tokens, device="cpu", dtype=torch.float32):
        at = torch.arange(tokens, device=device)
        return self.table[:, (at - at[:, None]).abs()].to(dtype)


class ByQuery(Distances):
    """A bias that depends on the queries too."""

    def scores(self, q, k):
        return self.dense(q.size(-2), q.device, q.dtype) * q[..., :1].tanh()


def with_biases(kind, **values):
    torch.manual_seed(1)
    model = small_model(**without_dropout(**values)).double()
    for layer in model.encoder.sentence_encoder.layers:
        layer.self_attn.attention_bias = kind(3).double()
    return model


def loss_and_gradients(model, tokens, masked):
    model.zero_grad()
    loss = model(tokens, masked_tokens=masked)[0].square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", [Distances, ByQuery])
@pytest.mark.parametrize("values", [{}, {"checkpoint_activations": True}, {"attention_backend": "sdpa"}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_biases_with_parameters_differ_from_layer_to_layer_and_are_trained(kind, values, packed):
    tokens = some_tokens()[:2]
    masked = (torch.arange(18).view(2, 9) % 4 == 1) & tokens.ne(PAD)
    reference = with_biases(kind, attention_backend="eager")
    reference.encoder.sentence_encoder.pack_below = 0.0
    model = with_biases(kind, **values)
    model.encoder.sentence_encoder.pack_below = float(packed)
    names = [name for name, _ in model.named_parameters() if name.endswith("attention_bias.table")]
    assert len(names) == 3
    for found, wanted in zip(
        loss_and_gradients(model, tokens, masked), loss_and_gradients(reference, tokens, masked), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    tables = [layer.self_attn.attention_bias.table.grad for layer in model.encoder.sentence_encoder.layers]
    assert all(bool(table.any()) for table in tables)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_flex_knows_biases_that_depend_on_queries():
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    bias = ByQuery(3)
    with torch.no_grad():
        found, wanted = (attend(q, k, v, bias=bias, backend=name) for name in ("flex", "eager"))
    torch.testing.assert_close(found, wanted)


def test_fused_says_which_bias_it_does_not_know():
    mixer = MultiheadSelfAttention(12, 3, backend="fused", attention_bias=Distances(3))
    with pytest.raises(ConfigError, match="knows no bias but ALiBi, and this is Distances"):
        mixer(torch.randn(1, 3, 12), EncoderContext())


def test_builders_take_the_shape_first():
    for registry in (TOKEN_MIXERS, CHANNEL_MIXERS, POSITIONS, ATTENTION_BIASES, LM_HEADS):
        for name in registry.names():
            assert next(iter(inspect.signature(registry.get(name)).parameters)) == "shape", (registry.kind, name)
