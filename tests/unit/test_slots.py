"""The slots of the encoder in the configuration: old spellings, options of variants, what is stored."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from fairseq.dataclass import FairseqDataclass, option
from fairseq.dataclass.base import field_specs
from fairseq.dataclass.build import build_config
from fairseq.dataclass.slots import chosen_variants, model_specs, slots_of
from fairseq.dataclass.state import config_from_state, config_to_state
from fairseq.errors import ConfigError
from fairseq.models.roberta.config import OLD_SETTINGS, RobertaConfig
from fairseq.models.roberta.factory import configuration
from fairseq.models.roberta.presets import PRESETS, base_architecture
from fairseq.registry import TOKEN_MIXERS


@dataclass(kw_only=True)
class MeanConfig(FairseqDataclass):
    mean_scale: float = option(1.0, "factor")
    mean_sizes: list[int] = option([], "sizes")


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKEN_MIXERS, "_entries", dict(TOKEN_MIXERS._entries))
    monkeypatch.setattr(TOKEN_MIXERS, "_configs", dict(TOKEN_MIXERS._configs))
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
