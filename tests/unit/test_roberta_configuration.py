"""Presets, registration and building of models."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest
import torch
from omegaconf import OmegaConf

from fairseq.dataclass.base import FairseqDataclass, option
from fairseq.dataclass.slots import model_specs
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_REGISTRY,
    FairseqEncoderDecoderModel,
    build_model,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import (
    RobertaConfig,
    RobertaModel,
    base_architecture,
    roberta_large_architecture,
    roberta_prenorm_architecture,
)
from fairseq.models.roberta.presets import FILLED, PRESETS
from fairseq.registry import ARCHITECTURE_MODELS, ARCHITECTURES, MODELS
from tests.unit.roberta import SIZES, Task, small_model, some_tokens


def test_a_namespace_keeps_what_is_there_even_none():
    args = argparse.Namespace(dropout=None, encoder_layers=2, max_source_positions=7, max_positions=99)
    base_architecture(args)
    assert args.dropout is None and args.encoder_layers == 2
    assert args.max_source_positions == 99  # always derived
    assert args.encoder_embed_dim == 768 and args.layernorm_embedding is True


def test_a_dictconfig_is_filled_where_missing_or_null():
    node = OmegaConf.create({"dropout": None, "encoder_layers": 2})
    OmegaConf.set_struct(node, True)
    roberta_large_architecture(node)
    assert node.dropout == 0.1 and node.encoder_layers == 2 and node.encoder_embed_dim == 1024
    assert set(node) == set(FILLED)
    assert node.max_source_positions == 512


def test_presets_fill_only_what_was_not_given():
    args = argparse.Namespace(layernorm_embedding=True)
    roberta_prenorm_architecture(args)
    assert args.layernorm_embedding is True and args.encoder_normalize_before is True


def test_every_preset_is_registered_and_uses_known_keys():
    assert set(PRESETS) == set(ARCHITECTURES.names()) & set(PRESETS)
    for name, differences in PRESETS.items():
        assert set(differences) <= (model_specs(name, {}) or {}).keys()


@pytest.mark.parametrize(
    ("arch", "count"), [("roberta", 124_696_665), ("roberta_base", 124_696_665), ("roberta_large", 355_411_033)]
)
def test_parameter_counts(arch, count):
    task = Task()
    while len(task.source_dictionary) < 50265:
        task.source_dictionary.add_symbol(f"x{len(task.source_dictionary)}")
    with torch.device("meta"):
        model = build_model(argparse.Namespace(arch=arch, max_positions=512), task)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("given", "limit", "expected"),
    [({}, None, 512), ({}, 20, 20), ({"tokens_per_sample": 30}, 20, 30), ({"max_positions": 40}, 20, 40)],
)
def test_max_positions(given, limit, expected):
    sizes = {key: value for key, value in SIZES.items() if key != "max_positions"}
    node = argparse.Namespace(arch="roberta", **sizes, **given)
    model = build_model(node, Task(limit))
    assert model.max_positions() == expected
    assert model.encoder.sentence_encoder.embed_positions.num_embeddings == expected + 2
    assert node.max_source_positions == expected


def test_layers_to_keep_set_the_number_of_layers():
    node = OmegaConf.create({"_name": "roberta", **SIZES, "encoder_layers_to_keep": "0,2"})
    assert len(build_model(node, Task()).encoder.sentence_encoder.layers) == 2
    assert node.encoder_layers == 2


def test_the_dataclass_itself_is_a_configuration():
    assert build_model(RobertaConfig(_name="roberta", **SIZES), Task()).max_positions() == 16


def test_nested_and_missing_names():
    assert isinstance(build_model(OmegaConf.create({"roberta": SIZES}), Task()), RobertaModel)
    with pytest.raises(ConfigError, match="names no model; known: .*roberta"):
        build_model(OmegaConf.create({"dropout": 0.1, "encoder_layers": 1}), Task())
    with pytest.raises(ConfigError, match="did you mean 'roberta_base'"):
        build_model(argparse.Namespace(arch="roberta_bsae"), Task())
    with pytest.raises(OutOfScopeError, match="out of scope"):
        build_model(argparse.Namespace(arch="transformer"), Task())


@pytest.mark.parametrize("name", ["xlmr", "camembert", "gottbert"])
def test_relatives_build_by_name(name):
    model = build_model(OmegaConf.create({"_name": name, **SIZES}), Task())
    assert isinstance(model, RobertaModel) and type(model) is MODEL_REGISTRY[name]


def test_views():
    assert ARCH_MODEL_REGISTRY["roberta_large"] is RobertaModel
    assert ARCH_MODEL_NAME_REGISTRY["xlm"] == "roberta"
    assert ARCH_CONFIG_REGISTRY["roberta"] is base_architecture
    assert "roberta_prenorm" in ARCH_MODEL_INV_REGISTRY["roberta"]
    assert "nothing" not in MODEL_REGISTRY and len(MODEL_REGISTRY) >= 4
    with pytest.raises(KeyError):
        MODEL_REGISTRY["nothing"]


@pytest.fixture
def clean_registries():
    before = [dict(r._entries) for r in (MODELS, ARCHITECTURES)], [dict(r._configs) for r in (MODELS, ARCHITECTURES)]
    names = dict(ARCHITECTURE_MODELS)
    yield
    for registry, entries, configs in zip((MODELS, ARCHITECTURES), *before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)
        registry._configs.clear()
        registry._configs.update(configs)
    ARCHITECTURE_MODELS.clear()
    ARCHITECTURE_MODELS.update(names)


def test_a_plugin_model(clean_registries):
    @register_model("mine")
    class Mine(RobertaModel):
        @staticmethod
        def add_args(parser):
            RobertaModel.add_args(parser)
            parser.add_argument("--extra", type=int)

    @register_model_architecture("mine", "mine_tiny")
    def tiny(args):
        args.encoder_layers = getattr(args, "encoder_layers", 1)
        base_architecture(args)

    parser = argparse.ArgumentParser()
    Mine.add_args(parser)
    assert vars(parser.parse_args(["--extra", "3", "--dropout", "0.5"])) == {"extra": 3, "dropout": 0.5}
    sizes = {key: value for key, value in SIZES.items() if key != "encoder_layers"}
    model = build_model(argparse.Namespace(arch="mine_tiny", extra=3, **sizes), Task())
    assert type(model) is Mine and model.args.extra == 3 and len(model.encoder.sentence_encoder.layers) == 1
    with pytest.raises(ValueError, match="registered twice"):
        register_model_architecture("roberta", "mine_tiny")(lambda args: None)
    with pytest.raises(ConfigError, match="unknown model 'mnie'.*'mine'"):
        register_model_architecture("mnie", "another")(tiny)
    with pytest.raises(ValueError, match="BaseFairseqModel"):
        register_model("wrong")(dict)


def test_a_plugin_model_with_a_dataclass(clean_registries):
    @dataclass(kw_only=True)
    class Settings(FairseqDataclass):
        width: int = option(12, "width")
        depth: int = option(1, "depth")

    @register_model("typed", dataclass=Settings)
    class Typed(RobertaModel):
        @classmethod
        def build_model(cls, cfg, task):
            sizes = {**SIZES, "encoder_layers": cfg.depth, "encoder_embed_dim": cfg.width}
            return super().build_model(argparse.Namespace(**sizes), task)

    node = OmegaConf.create({"_name": "typed", "depth": 2})
    model = build_model(node, Task())
    assert len(model.encoder.sentence_encoder.layers) == 2
    assert node.width == 12


def test_a_plugin_encoder(clean_registries):
    from fairseq.models.roberta import RobertaEncoder

    class Doubling(RobertaEncoder):
        def extract_features(self, src_tokens, **kwargs):
            features, extra = super().extract_features(src_tokens, **kwargs)
            return 2 * features, extra

        def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
            return super().build_lm_head(embed_dim, output_dim, "relu", weight)

    args = argparse.Namespace(**SIZES)
    model = RobertaModel(args, Doubling(args, Task().source_dictionary)).eval()
    tokens = some_tokens()
    reference = small_model().eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encoder.extract_features(tokens)[0], 2 * reference.extract_features(tokens)[0])


def test_seq2seq_bases_can_be_derived_but_not_made():
    class Old(FairseqEncoderDecoderModel):
        pass

    with pytest.raises(
        OutOfScopeError, match="FairseqEncoderDecoderModel belongs to sequence-to-sequence.*out of scope"
    ):
        Old(None, None)
