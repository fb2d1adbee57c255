"""The slots of the encoder in the configuration: old spellings, options of variants, what is stored."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.dataclass import FairseqDataclass, option
from fairseq.dataclass.base import MISSING, field_specs
from fairseq.dataclass.build import build_config
from fairseq.dataclass.slots import chosen_variants, model_specs, other_variants, slots_of
from fairseq.dataclass.state import config_from_state, config_to_state
from fairseq.errors import ConfigError
from fairseq.models.roberta.config import OLD_SETTINGS, RobertaConfig
from fairseq.models.roberta.factory import configuration
from fairseq.models.roberta.presets import PRESETS, base_architecture
from fairseq.registry import (
    ARCHITECTURES,
    ATTENTION_BIASES,
    CHANNEL_MIXERS,
    LM_HEADS,
    POSITIONS,
    TOKEN_MIXERS,
    Registry,
)
from tests.unit.roberta import small_model


@dataclass(kw_only=True)
class MeanConfig(FairseqDataclass):
    mean_scale: float = option(1.0, "factor")
    mean_sizes: list[int] = option([], "sizes")


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in slots_of(RobertaConfig).values():
        for name in registry.names():
            registry.get(name)  # what is imported later would be registered in the copy alone
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_configs", dict(registry._configs))


@pytest.fixture
def mean(registries: None) -> None:
    TOKEN_MIXERS.register("mean", dataclass=MeanConfig)(object)


def model_section(**values: Any) -> dict[str, Any]:
    """The stored model section of a run of the architecture roberta with ``values``."""
    cfg = build_config({"task": {"_name": "masked_lm", "data": "d"}, "model": {"_name": "roberta", **values}})
    base_architecture(cfg.model)
    return config_to_state(cfg)["model"]


@pytest.mark.parametrize(("slot", "variant"), [(slot, name) for slot in OLD_SETTINGS for name in OLD_SETTINGS[slot]])
def test_variants_of_the_original_are_stored_in_its_spelling(slot: str, variant: str) -> None:
    more = {"positions": "none"} if variant.startswith("alibi") else {}
    stored = model_section(**{slot: variant}, **more)
    assert not OLD_SETTINGS.keys() & stored.keys()
    assert {key: stored[key] for key in OLD_SETTINGS[slot][variant]} == OLD_SETTINGS[slot][variant]
    assert chosen_variants("roberta", stored)[slot] == variant


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_every_slot(name: str) -> None:
    chosen = chosen_variants(name, {})
    assert chosen.keys() == slots_of(RobertaConfig).keys() == OLD_SETTINGS.keys()
    for slot, variant in chosen.items():
        assert variant in slots_of(RobertaConfig)[slot]


def test_presets_choose_what_their_names_say() -> None:
    alibi_clap = chosen_variants("roberta_alibi_clap", {})
    assert (alibi_clap["positions"], alibi_clap["attention_bias"]) == ("none", "alibi_asymmetrical")
    assert alibi_clap["lm_head"] == "clap" and chosen_variants("roberta", {})["lm_head"] == "roberta"
    assert chosen_variants("roberta_alibi", {"attention_bias": "alibi"})["attention_bias"] == "alibi"


def test_options_of_a_chosen_variant_join_the_model_section(mean: None) -> None:
    assert "mean_scale" not in (model_specs("roberta", {}) or {})
    assert "mean_scale" in (model_specs("roberta", {"token_mixer": "mean"}) or {})
    cfg = build_config({"model": {"_name": "roberta", "token_mixer": "mean", "mean_scale": "2", "mean_sizes": "[2]"}})
    assert cfg.model.mean_scale == 2.0 and list(cfg.model.mean_sizes) == [2]
    assert configuration(cfg.model).variants["token_mixer"] == ("mean", {"scale": 2.0, "sizes": [2]})
    plain = configuration(argparse.Namespace(token_mixer="mean", mean_scale="3"))
    assert plain.variants["token_mixer"].options == {"scale": 3.0, "sizes": []}


def test_only_what_differs_from_its_default_is_stored(mean: None) -> None:
    stored = model_section(token_mixer="mean", mean_scale=1.0, mean_sizes=[3], layer_norm_eps=1e-5)
    assert stored["token_mixer"] == "mean" and stored["mean_sizes"] == [3]
    assert not {"mean_scale", "layer_norm_eps", "type_vocab_size", "channel_mixer"} & stored.keys()
    again = config_from_state({"model": stored, "task": {"_name": "masked_lm", "data": "d"}}, {"mean_scale": 3})
    assert again.model.mean_scale == 3.0 and again.model.token_mixer == "mean"


def test_mistakes_are_named(mean: None) -> None:
    def given(**values: Any) -> None:
        build_config({"model": {"_name": "roberta", **values}})

    with pytest.raises(ConfigError, match=r"unknown token mixer 'meen'; did you mean 'mean'\?"):
        given(token_mixer="meen")
    with pytest.raises(ConfigError, match=r"unknown key 'model.mean_scal'; did you mean 'mean_scale'"):
        given(token_mixer="mean", mean_scal=1)
    with pytest.raises(
        ConfigError, match=r"model.mean_scale': it is an option of token mixer 'mean', .*token_mixer=mean"
    ):
        given(mean_scale=1)
    with pytest.raises(ConfigError, match="model.mean_scale must be a number"):
        given(token_mixer="mean", mean_scale="wide")


def test_options_must_begin_with_the_name_of_their_variant() -> None:
    config = dataclasses.make_dataclass("Config", [("reach", int, 1)], bases=(FairseqDataclass,), kw_only=True)
    with pytest.raises(ConfigError, match="option 'reach' of token mixer 'mine' must be called mine_reach"):
        TOKEN_MIXERS.register("mine", dataclass=config)


def test_options_of_all_built_in_variants_begin_with_their_names() -> None:
    for registry in slots_of(RobertaConfig).values():
        for name in registry.names():
            config = registry.config_class(name)
            for key in field_specs(config) if config is not None else ():
                assert key.startswith((f"{name}_", "_"))


def registered(registry: Registry[Any], name: str, made: Any, **fields: Any) -> None:
    """Register ``made`` with options ``name=(type, default)``."""
    own = [(key, kind, dataclasses.field(default=default)) for key, (kind, default) in fields.items()]
    config = dataclasses.make_dataclass("Config", own, bases=(FairseqDataclass,), kw_only=True)
    registry.register(name, dataclass=config)(made)


class Mixer(nn.Linear):
    def __init__(self, shape: Any, **given: Any) -> None:
        super().__init__(shape.dim, shape.dim)
        self.given = given

    def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_bias": "none", "encoder_alibi": True}, "model.attention_bias=none and model.encoder_alibi=true"),
        (
            {"attention_bias": "alibi", "encoder_alibi_asymmetrical": "true"},
            "model.attention_bias=alibi and model.encoder_alibi_asymmetrical=true",
        ),
        (
            {"positions": "learned", "encoder_learned_pos": False},
            "model.positions=learned and model.encoder_learned_pos=false",
        ),
        (
            {"lm_head": "roberta", "contrastive_pretraining": True},
            "model.lm_head=roberta and model.contrastive_pretraining",
        ),
        ({"attention_bias": "mine", "encoder_alibi": True}, "model.attention_bias=mine and model.encoder_alibi=true"),
    ],
)
def test_spellings_that_contradict_each_other(registries: None, given: dict[str, Any], message: str) -> None:
    registered(ATTENTION_BIASES, "mine", object)
    with pytest.raises(ConfigError, match=f"{message}.* contradict each other: leave out one"):
        build_config({"model": {"_name": "roberta", **given}})


@pytest.mark.parametrize(
    "given",
    [
        {"attention_bias": "alibi_asymmetrical", "encoder_alibi": True, "encoder_alibi_asymmetrical": True},
        {"attention_bias": "alibi", "encoder_alibi": False},  # the default, which a complete file spells out
        {"positions": "none", "encoder_learned_pos": False},
    ],
)
def test_spellings_that_agree(given: dict[str, Any]) -> None:
    build_config({"model": {"_name": "roberta", **given}})


def test_a_variant_takes_the_place_of_what_its_architecture_chose(registries: None) -> None:
    registered(ATTENTION_BIASES, "mine", object)
    registered(LM_HEADS, "linear", lambda shape, vocab, embeddings: nn.Linear(shape.dim, vocab))
    args = argparse.Namespace(attention_bias="mine", lm_head="linear")
    ARCHITECTURES.get("roberta_alibi_clap")(args)
    assert args.attention_bias == "mine" and args.no_token_positional_embeddings
    assert not (args.encoder_alibi or args.encoder_alibi_asymmetrical or args.contrastive_pretraining)
    embed = small_model(lm_head="linear", dropout=0.0).encoder.sentence_encoder.embed_tokens
    assert embed.padding_idx is not None and not embed.normalize


def test_alibi_beside_positions_of_a_plugin(registries: None) -> None:
    registered(POSITIONS, "mine", lambda shape: None)
    model = small_model(positions="mine", attention_bias="alibi")
    assert model.encoder.sentence_encoder.embed_positions is None
    with pytest.raises(ConfigError, match=r"attention_bias=alibi .* but model.positions is 'sinusoidal'"):
        small_model(positions="sinusoidal", attention_bias="alibi")


def test_mixers_that_take_any_part(registries: None) -> None:
    registered(TOKEN_MIXERS, "open", Mixer)
    mixer = small_model(token_mixer="open", positions="none", attention_bias="alibi").encoder.sentence_encoder.layers[0]
    assert list(mixer.self_attn.given) == ["attention_bias"]


def test_options_that_are_settings_already(registries: None) -> None:
    registered(TOKEN_MIXERS, "encoder", Mixer, encoder_layers=(int, 3))
    with pytest.raises(ConfigError, match="option 'encoder_layers' of token mixer 'encoder' is another setting"):
        build_config({"model": {"_name": "roberta", "token_mixer": "encoder"}})
    registered(TOKEN_MIXERS, "both", Mixer, both_width=(int, 3))
    registered(CHANNEL_MIXERS, "both", Mixer, both_width=(int, 4))
    build_config({"model": {"_name": "roberta", "token_mixer": "both"}})
    with pytest.raises(ConfigError, match="option 'both_width' of channel mixer 'both' is another setting"):
        build_config({"model": {"_name": "roberta", "token_mixer": "both", "channel_mixer": "both"}})


def test_options_that_follow_other_settings(registries: None) -> None:
    registered(TOKEN_MIXERS, "mine", Mixer, mine_seed=(int, "${common.seed}"), mine_width=(int, MISSING))
    given = {"common": {"seed": 5}, "model": {"_name": "roberta", "token_mixer": "mine"}}
    cfg = build_config(given)
    assert cfg.model.mine_seed == 5
    with pytest.raises(ConfigError, match="model.mine_width is mandatory for token_mixer=mine: give --mine-width"):
        configuration(cfg.model)
    cfg.model.mine_width = 2
    assert configuration(cfg.model).variants["token_mixer"].options == {"seed": 5, "width": 2}


@pytest.mark.parametrize(
    ("slot", "made", "message"),
    [
        ("token_mixer", lambda shape, *, reach: None, "cannot be built from its options .width.: missing .*'reach'"),
        ("token_mixer", lambda shape, **given: None, "made NoneType, which has no method forward"),
        ("channel_mixer", lambda shape, **given: 5, "made int, which has no method forward"),
        ("positions", Mixer, "made Mixer, which has no method ids"),
        ("attention_bias", Mixer, "made Mixer, which has no method dense"),
    ],
)
def test_what_is_no_variant(registries: None, slot: str, made: Any, message: str) -> None:
    registered(slots_of(RobertaConfig)[slot], "mine", made, mine_width=(int, 3))
    with pytest.raises(ConfigError, match=f"model.{slot}=mine {message}"):
        small_model(**{slot: "mine"})


@pytest.mark.parametrize("value", [["none"], {"_name": "none"}])
def test_a_slot_holds_a_name(value: Any) -> None:
    with pytest.raises(ConfigError, match="model.positions must be the name of a variant, but is "):
        build_config({"model": {"_name": "roberta", "positions": value}})


def test_a_name_is_registered_once(mean: None) -> None:
    with pytest.raises(ConfigError, match="token mixer 'mean' is registered twice"):
        TOKEN_MIXERS.register("mean")(Mixer)
    with pytest.raises(ConfigError, match="token mixer 'self_attention' is registered twice"):
        TOKEN_MIXERS.register("self_attention")(Mixer)


def test_checkpoints_of_a_plugin_that_is_not_there() -> None:
    stored = {"model": {"_name": "roberta", "token_mixer": "gone", "gone_reach": 3}}
    with pytest.raises(ConfigError, match="unknown token mixer 'gone'.* that of a plugin needs --user-dir"):
        config_from_state(stored)
    own = argparse.Namespace(_name="roberta", token_mixer=None)
    assert other_variants(stored, own).startswith(
        "; it was trained with token_mixer=gone, and a plugin's variant needs"
    )
    assert other_variants({"model": {"_name": "roberta"}}, own) == other_variants(None, own) == ""
