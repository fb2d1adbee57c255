"""Old state dicts: names, versions, heads, layers to keep."""

from __future__ import annotations

import logging

import pytest
import torch
from omegaconf import OmegaConf

from fairseq.errors import CheckpointError, ConfigError
from fairseq.models.loading import load_weights, parse_layers, prune_layers
from tests.unit.roberta import small_model, some_tokens


def aged(state):
    """``state`` as a file of 2019 would have it."""
    old = {}
    for key, value in state.items():
        if key.endswith(".version"):
            continue
        name = key.replace("encoder.", "decoder.", 1).replace(".layernorm_embedding.", ".emb_layer_norm.")
        name = name.replace(".self_attn_layer_norm.", ".layer_norms.0.").replace(
            ".final_layer_norm.", ".layer_norms.1."
        )
        if ".q_proj." in name:
            parts = [state[key.replace("q_proj", projection)] for projection in ("q_proj", "k_proj", "v_proj")]
            old[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            old[name] = value.clone()
    return old


def test_a_file_of_2019_loads():
    model = small_model().eval()
    old = aged(model.state_dict())
    assert any(".in_proj_weight" in key for key in old) and all(key.startswith("decoder.") for key in old)
    fresh = small_model().eval()
    keys = list(old)
    fresh.load_state_dict(old)
    assert list(old) == keys  # what was given is left alone
    tokens = some_tokens()
    assert torch.equal(fresh(tokens)[0], model(tokens)[0])
    assert fresh.encoder.sentence_encoder.version.tolist() == [1.0]


def test_a_file_without_version_has_no_last_norm():
    state = small_model("roberta_prenorm").state_dict()
    del state["encoder.sentence_encoder.version"]
    del state["encoder.sentence_encoder.layer_norm.weight"], state["encoder.sentence_encoder.layer_norm.bias"]
    model = small_model("roberta_prenorm")
    model.load_state_dict(state)
    assert model.encoder.sentence_encoder.layer_norm is None
    assert model(some_tokens())[0].shape == (3, 9, 31)


def test_sinusoidal_leftovers():
    state = dict(small_model(encoder_learned_pos=False).state_dict())
    del state["encoder.sentence_encoder.embed_positions._float_tensor"]
    state["encoder.sentence_encoder.embed_positions.weights"] = torch.zeros(3, 4)
    small_model(encoder_learned_pos=False).load_state_dict(state)


def test_unknown_and_missing_names_are_errors():
    state = small_model().state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        small_model().load_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"x\.pt does not fit the model: size mismatch"):
        load_weights(small_model(encoder_ffn_embed_dim=8), state, None, "x.pt", True)


def test_heads_of_the_file(caplog):
    source = small_model()
    source.register_classification_head("kept", num_classes=3, inner_dim=5)
    source.register_classification_head("resized", num_classes=2)
    state = source.state_dict()
    model = small_model()
    model.register_classification_head("resized", num_classes=4)
    model.register_classification_head("own", num_classes=2)
    own = model.classification_heads["own"].dense.weight.clone()
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(state)
    assert "'kept', which the model does not have" in caplog.text
    assert "'resized' of the checkpoint has 2 classes, here 4: the head starts anew" in caplog.text
    assert set(model.classification_heads) == {"resized", "own"}
    assert torch.equal(model.classification_heads["own"].dense.weight, own)
    model = small_model(load_checkpoint_heads=True)
    model.load_state_dict(state)
    assert set(model.classification_heads) == {"kept", "resized"}
    assert torch.equal(
        model.classification_heads["kept"].dense.weight, source.classification_heads["kept"].dense.weight
    )


def test_spectral_norm_heads_load_again():
    source = small_model(spectral_norm_classification_head=True)
    source.register_classification_head("a", num_classes=3)
    model = small_model(spectral_norm_classification_head=True, load_checkpoint_heads=True)
    model.load_state_dict(source.state_dict())
    name = "classification_heads.a.out_proj.weight_orig"
    assert torch.equal(model.state_dict()[name], source.state_dict()[name])


def test_data2vec_leftovers():
    source = small_model()
    state = {key: value for key, value in source.state_dict().items() if "lm_head" not in key}
    state["encoder._ema"] = torch.zeros(1)
    state["encoder.regression_head.0.weight"] = torch.zeros(1)
    small_model().load_state_dict(state)


def test_layers_to_keep():
    deep = small_model().eval()
    cfg = OmegaConf.create({"encoder_layers_to_keep": "2,0"})
    model = small_model(encoder_layers_to_keep="0,2").eval()
    model.load_state_dict(deep.state_dict(), model_cfg=cfg)
    assert cfg.encoder_layers_to_keep is None
    kept, layers = model.encoder.sentence_encoder.layers, deep.encoder.sentence_encoder.layers
    assert torch.equal(kept[1].fc1.weight, layers[2].fc1.weight) and torch.equal(
        kept[0].fc1.weight, layers[0].fc1.weight
    )
    again = small_model(encoder_layers_to_keep="0,2")
    again.load_state_dict(model.state_dict())  # holds just these layers already
    assert again.args.encoder_layers_to_keep == "0,2"
    fresh = small_model(encoder_layers_to_keep="0,2")
    fresh.load_state_dict(deep.state_dict())  # by the model's own configuration
    assert fresh.args.encoder_layers_to_keep is None
    aged_model = small_model(encoder_layers_to_keep="0,2")
    aged_model.load_state_dict(aged(deep.state_dict()))
    assert torch.equal(aged_model.encoder.sentence_encoder.layers[1].fc1.weight, layers[2].fc1.weight)


def test_layers_to_keep_that_are_not_there():
    with pytest.raises(CheckpointError, match="no layer 7; it has 3 layers"):
        prune_layers(dict(small_model().state_dict()), OmegaConf.create({"encoder_layers_to_keep": "0,7"}))
    assert parse_layers("4, 0,2") == [0, 2, 4]
    for wrong in ("a", "-1,2", ""):
        with pytest.raises(ConfigError):
            parse_layers(wrong)


def test_other_positions_name_the_option() -> None:
    state = small_model(max_positions=12).state_dict()
    with pytest.raises(CheckpointError, match=r"12 positions, but the model was made for 16: .*max_positions=12"):
        small_model(max_positions=16).load_state_dict(state)
    for stored, own, words in (
        (
            {},
            {"learned_offset": 0},
            "has 18 rows, but that of the model 16: set model.learned_offset=2,.* 16 positions",
        ),
        (
            {"learned_offset": 0},
            {},
            "has 16 rows, but that of the model 18: set model.learned_offset=0,.* 16 positions",
        ),
    ):
        state = small_model(max_positions=16, **stored).state_dict()
        with pytest.raises(CheckpointError, match=words):
            small_model(max_positions=16, **own).load_state_dict(state)
    alibi = {"no_token_positional_embeddings": True, "encoder_alibi": True}
    small_model(max_positions=64, **alibi).load_state_dict(small_model(max_positions=16, **alibi).state_dict())


@pytest.mark.parametrize("offset", [None, 0])
def test_positions_are_extended_when_asked(offset: int | None) -> None:
    key, first = "encoder.sentence_encoder.embed_positions.weight", 2 if offset is None else 0
    state = small_model(max_positions=6, learned_offset=offset).state_dict()
    with pytest.raises(CheckpointError, match=r"or model.extend_positions=tile or interpolate"):
        small_model(max_positions=16, learned_offset=offset).load_state_dict(dict(state))
    tables = {}
    for how in ("tile", "interpolate"):
        longer = small_model(max_positions=16, learned_offset=offset, extend_positions=how)
        longer.load_state_dict(dict(state))
        tables[how] = longer.state_dict()[key]
        assert torch.equal(tables[how][:first], state[key][:first]) and len(tables[how]) == 16 + first
    stored = state[key][first:]
    assert torch.equal(tables["tile"][first:], torch.cat([stored, stored, stored[:4]]))
    drawn = tables["interpolate"][first:]
    assert torch.allclose(drawn[[0, 3, 6, 9, 12, 15]], stored, atol=1e-6)
    assert torch.allclose(drawn[1], stored[0] * 2 / 3 + stored[1] / 3, atol=1e-6)
    same = small_model(max_positions=6, learned_offset=offset, extend_positions="tile")
    same.load_state_dict(dict(state))
    assert torch.equal(same.state_dict()[key], state[key])
    with pytest.raises(ConfigError, match="model.extend_positions must be one of tile, interpolate"):
        small_model(extend_positions="mirror")
