"""The fast feed-forward channel mixer, the presets around it, and what they ask of the encoder."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.dataclass.build import build_config
from fairseq.dataclass.slots import chosen_variants
from fairseq.dataclass.state import config_from_state, config_to_state
from fairseq.errors import ConfigError
from fairseq.models.roberta.factory import configuration
from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.fff import FastFeedForward
from fairseq.modules.positions import ScaledSinusoidalPositions
from fairseq.modules.slots import EncoderContext
from fairseq.ops.fff import fff_routes
from fairseq.optim.parameter_groups import parameter_groups
from fairseq.registry import ARCHITECTURES, FFF_SIZES
from tests.unit.roberta import small_model, some_tokens, without_dropout


def by_hand(layer: FastFeedForward, x: torch.Tensor) -> torch.Tensor:
    """One token (C_in,), node by node."""
    y = torch.zeros(layer.weight_out.size(1), dtype=x.dtype)
    nodes = 2 ** (layer.depth + 1) - 1
    for tree in range(layer.num_trees):
        node = 0
        for _ in range(layer.depth + 1):
            row = tree * nodes + node
            logit = layer.weight_in[row] @ x + layer.bias_in[row]
            y = y + nn.functional.gelu(logit) * layer.weight_out[row]
            node = 2 * node + (2 if logit > 0 else 1)
    return y


@pytest.mark.parametrize(("depth", "trees"), [(0, 5), (3, 1), (2, 3)])
def test_a_token_takes_one_path_through_each_tree(depth: int, trees: int) -> None:
    torch.manual_seed(1)
    layer = FastFeedForward(6, 4, depth=depth, num_trees=trees).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    wanted = torch.stack([by_hand(layer, token) for token in x.flatten(0, 1)]).view(2, 3, 4)
    torch.testing.assert_close(layer(x), wanted)
    assert layer(x[:0]).shape == (0, 3, 4) and layer(x[0, 0]).shape == (4,)
    layer(x).sum().backward()
    nodes = 2 ** (depth + 1) - 1
    routes = fff_routes(x, layer.weight_in, layer.bias_in, depth, trees)
    visited = set((routes + nodes * torch.arange(trees)[:, None]).flatten().tolist())
    assert {row for row in range(nodes * trees) if layer.weight_out.grad[row].any()} == visited  # type: ignore[index]


def test_weights_and_tags() -> None:
    torch.manual_seed(1)
    layer = FastFeedForward(64, 32, depth=7, num_trees=2)
    assert [tuple(p.shape) for p in layer.parameters()] == [(510, 64), (510,), (510, 32)]
    for parameter, bound in zip(layer.parameters(), (64**-0.5, 64**-0.5, 16**-0.5), strict=True):
        assert bound * 0.95 < float(parameter.detach().abs().max()) <= bound
    layer.draw_weights()
    for weight in (layer.weight_in, layer.weight_out):
        assert (
            math.isclose(float(weight.detach().std()), 0.02, rel_tol=0.03) and abs(float(weight.detach().mean())) < 1e-3
        )
    assert not layer.bias_in.any()
    groups = parameter_groups(layer.named_parameters())
    assert [group.get("weight_decay") for group in groups] == [None, 0.0] and groups[1]["params"] == [layer.bias_in]
    assert str(layer) == "FastFeedForward(64, 32, depth=7, num_trees=2)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fff_depth": -1}, "a depth from 0 to 24"),
        ({"fff_trees": 0}, "at least one tree"),
        ({"activation_fn": "tanh"}, "activation gelu or relu, but model.activation_fn is 'tanh'"),
        ({"activation_dropout": 0.1}, "no dropout after its activation"),
        ({"pooler_inner_dim": 0}, "pooler_inner_dim must be at least 1"),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_model("roberta_fff", **given)


def test_scaled_sinusoidal_positions() -> None:
    positions = ScaledSinusoidalPositions(5, 6)
    padding = torch.tensor([[True, False, False]])
    assert positions.ids(padding).tolist() == [[0, 1, 2]]  # padding counts
    found = positions(torch.tensor([[0, 3, 9]]))  # as many as needed
    assert positions.state_dict().keys() == {"scale"} and math.isclose(positions.scale.item(), 6**-0.5, rel_tol=1e-6)
    for column, position in enumerate((0, 3, 9)):
        for pair in range(3):
            angle = position * 10000 ** (-2 * pair / 6)
            for place, value in ((2 * pair, math.sin(angle)), (2 * pair + 1, math.cos(angle))):
                assert math.isclose(found[0, column, place].item(), 6**-0.5 * value, abs_tol=1e-6)
    found.sum().backward()
    assert positions.scale.grad is not None
    assert ScaledSinusoidalPositions(5, 7)(torch.tensor([[2]])).shape == (1, 1, 7)
    assert positions.half()(torch.tensor([[2]])).dtype == torch.float16


def test_scale_of_attention_scores() -> None:
    torch.manual_seed(1)
    plain = MultiheadSelfAttention(8, 2, bias=False)
    scaled = MultiheadSelfAttention(8, 2, bias=False, scale=0.25)
    scaled.load_state_dict(plain.state_dict())
    assert set(plain.state_dict()) == {f"{name}_proj.weight" for name in ("q", "k", "v", "out")}
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        wanted = scaled(x, EncoderContext())
        plain.q_proj.weight.mul_(0.5)  # heads are 4 wide, so that 1/sqrt 4 is usual
        torch.testing.assert_close(plain(x, EncoderContext()), wanted)


def test_crammed_bert() -> None:
    model = small_model("crammed_bert", **without_dropout())
    biases = [name for name in model.state_dict() if name.endswith(".bias") and "norm" not in name]
    assert biases == []
    encoder: Any = model.encoder.sentence_encoder
    assert encoder.layer_norm.eps == 1e-12 and encoder.layers[0].pre_norm
    assert not hasattr(encoder.layers[0], "fc1") or encoder.layers[0].fc1.bias is None
    logits = model(some_tokens())[0]
    features = model(some_tokens(), features_only=True)[0]
    torch.testing.assert_close(logits, features @ encoder.embed_tokens.weight.t())
    model.register_classification_head("task", num_classes=2)
    head: Any = model.classification_heads["task"]
    assert head.dense.out_features == 1024 and head.dropout.p == 0.1 and not head.input_dropout
    assert small_model("crammed_bert_4095").encoder.config.encoder_ffn_embed_dim == 20  # what is given is kept
    model = small_model("ultrafastbert_1x11", lm_head="roberta", fff_depth=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group.get("weight_decay"): group["params"] for group in parameter_groups(model.named_parameters())}
    assert groups.keys() == {None, 0.0}
    exempt = {names[id(parameter)] for parameter in groups[0.0]}
    assert exempt == {name for name in names.values() if "bias" in name or "norm" in name}
    assert len(parameter_groups(small_model().named_parameters())) == 1
    node = argparse.Namespace()
    ARCHITECTURES.get("crammed_bert_4095")(node)
    assert (node.encoder_layers, node.encoder_embed_dim, node.encoder_ffn_embed_dim) == (16, 768, 4095)


@pytest.mark.parametrize("size", FFF_SIZES)
def test_sizes_of_presets(size: str) -> None:
    node = argparse.Namespace()
    ARCHITECTURES.get(f"ultrafastbert_{size}")(node)
    assert f"{node.fff_trees}x{node.fff_depth}" == size and node.encoder_layers == 16


def settings(name: str, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored of a model of the architecture ``name``, and its variants with their options when loaded again."""
    cfg = build_config({"task": {"_name": "masked_lm", "data": "d"}, "model": {"_name": name, **given}})
    for _ in range(2):  # more than one place fills
        ARCHITECTURES.get(name)(cfg.model)
        ARCHITECTURES.get("roberta")(cfg.model)
    stored = config_to_state(cfg)
    again = config_from_state(stored)
    ARCHITECTURES.get(name)(again.model)
    chosen, loaded = configuration(cfg.model), configuration(again.model)
    assert chosen.variants == loaded.variants and vars(chosen) == vars(loaded)
    assert {slot: variant.name for slot, variant in chosen.variants.items()} == chosen_variants(name, given)
    return stored["model"], loaded.variants


@pytest.mark.parametrize("variant", ["feed_forward", "none"])
def test_another_channel_mixer_than_that_of_the_preset(variant: str) -> None:
    stored, variants = settings("roberta_fff", channel_mixer=variant)
    assert variants["channel_mixer"] == (variant, {}) and stored["channel_mixer"] == variant
    assert not {"fff_depth", "fff_trees"} & stored.keys()


def test_a_preset_with_other_options() -> None:
    stored, variants = settings("ultrafastbert_8x8", fff_depth=11)
    assert variants["channel_mixer"] == ("fff", {"depth": 11, "trees": 8}) and stored["fff_depth"] == 11
    stored, variants = settings("crammed_bert", linear_bias=True, layer_norm_eps=1e-5)
    assert stored["linear_bias"] is True and stored["layer_norm_eps"] == 1e-5
    assert not {"self_attention_scale", "product_bias"} & settings("crammed_bert")[0].keys()


@pytest.mark.parametrize(
    ("given", "slot", "variant"),
    [
        ({"positions": "learned"}, "positions", "learned"),
        ({"positions": "sinusoidal"}, "positions", "sinusoidal"),
        ({"no_token_positional_embeddings": True}, "positions", "none"),
        ({"encoder_learned_pos": False}, "positions", "sinusoidal"),
        ({"lm_head": "roberta"}, "lm_head", "roberta"),
        ({"contrastive_pretraining": True}, "lm_head", "clap"),
    ],
)
def test_variants_of_the_original_in_place_of_those_of_the_preset(
    given: dict[str, Any], slot: str, variant: str
) -> None:
    stored, variants = settings("crammed_bert", **given)
    assert variants[slot].name == stored[slot] == variant
    model = small_model("crammed_bert", **given, encoder_layers=1)
    assert model.encoder.config.variants[slot].name == variant


def test_alibi_and_clap_beside_fast_feed_forwards() -> None:
    for name, given in (
        ("roberta_alibi_clap", {"channel_mixer": "fff", "fff_depth": 3}),
        ("roberta_fff", {"positions": "none", "attention_bias": "alibi", "lm_head": "clap", "fff_depth": 3}),
        ("crammed_bert", {"positions": "none", "attention_bias": "alibi", "lm_head": "clap", "channel_mixer": "fff"}),
    ):
        settings(name, **given)
        model = small_model(name, **given)
        assert "encoder.lm_head.beta" in model.state_dict()
        assert "encoder.sentence_encoder.layers.0.channel_mixer.weight_in" in model.state_dict()
    with pytest.raises(ConfigError, match="takes the place of position embeddings.* 'scaled_sinusoidal'"):
        small_model("crammed_bert", attention_bias="alibi")
