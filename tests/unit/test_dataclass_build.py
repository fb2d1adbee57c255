"""The complete configuration: defaults, checks, interpolation, implied settings."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from omegaconf import OmegaConf

from fairseq.dataclass.build import build_config, require_complete
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.registry import ARCHITECTURES, MODELS


def tree(**sections: Any) -> dict[str, Any]:
    return {
        "task": {"_name": "masked_lm", "data": "d"},
        "criterion": "masked_lm",
        "optimizer": {"_name": "adam"},
        "lr_scheduler": {"_name": "polynomial_decay"},
        "model": {"_name": "roberta"},
        **sections,
    }


def test_defaults_and_shared_values() -> None:
    cfg = build_config(tree(common={"seed": 7}, optimization={"lr": 0.1, "max_update": 9}))
    assert cfg.task.seed == 7 and cfg.optimizer.lr == [0.1] and cfg.lr_scheduler.total_num_update == 9.0
    assert type(cfg.lr_scheduler.total_num_update) is float
    assert cfg.criterion == {"_name": "masked_lm", "tpu": False}
    assert cfg.bpe is None and cfg.scoring is None


def test_the_model_has_only_what_was_given() -> None:
    cfg = build_config(tree(model={"_name": "roberta_base", "dropout": 0, "mask_prob": 0.2}))
    assert cfg.model == {"_name": "roberta_base", "dropout": 0.0, "mask_prob": 0.2}
    cfg.model.encoder_layers = 2  # architectures fill in the rest
    with pytest.raises(AttributeError):
        cfg.dataset.new_key = 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dataset": {"bach_size": 1}}, r"unknown key 'dataset\.bach_size'; did you mean 'batch_size'\?"),
        ({"model": {"_name": "roberta", "encoder_layer": 1}}, "did you mean 'encoder_layers'"),
        ({"optimizer": {"_name": "adam", "beta": 1}}, r"unknown key 'optimizer\.beta'"),
        ({"optimizaton": {"lr": [1]}}, "did you mean 'optimization'"),
        ({"model": "roberta_bsae"}, "did you mean 'roberta_base'"),
        ({"task": "masked_ml"}, "did you mean 'masked_lm'"),
        ({"optimizer": {"weight_decay": 1}}, "optimizer needs a name"),
        ({"common": 3}, "common must be a group of settings"),
        ({"common": {"log_format": "jsn"}}, "did you mean 'json'"),
        ({"common": {"seed": "${common.sed}"}}, "sed"),
        ({"common": {"amp": True, "fp16": True}}, "exclude each other"),
    ],
)
def test_mistakes_are_one_sentence(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(tree(**sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"common": {"tpu": True}},
        {"generation": {"beam": 7}},
        {"optimization": {"use_bmuf": True}},
        {"distributed_training": {"ddp_backend": "slowmo"}},
        {"distributed_training": {"pipeline_model_parallel": True}},
        {"model": {"_name": "roberta", "quant_noise_pq": 0.1}},
        {"model": {"_name": "roberta", "encoder_xformers_att_config": "{}"}},
        {"criterion": "cross_entropy"},
        {"task": "translation"},
    ],
)
def test_out_of_scope_requests_are_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(OutOfScopeError, match="out of scope"):
        build_config(tree(**sections))


def test_out_of_scope_defaults_pass() -> None:
    build_config(
        tree(
            common={"tpu": False, "model_parallel_size": 1},
            generation={"beam": 5},
            model={"_name": "roberta", "quant_noise_pq": 0, "mha_heads_to_keep": -1},
            optimization={"debug_param_names": False},
            scoring="bleu",
        )
    )


def test_implied_precision_and_validation_batches() -> None:
    cfg = build_config(tree(common={"memory_efficient_fp16": True}, dataset={"batch_size": 4, "max_tokens": 99}))
    assert cfg.common.fp16 and cfg.distributed_training.fp16 and not cfg.common.bf16
    assert cfg.dataset.batch_size_valid == 4 and cfg.dataset.max_tokens_valid == 99
    cfg = build_config(tree(common={"bf16": True}, dataset={"batch_size": 4, "batch_size_valid": 2}))
    assert cfg.common.bf16 and not cfg.common.tpu and cfg.dataset.batch_size_valid == 2


def test_mandatory_settings_are_named() -> None:
    cfg = build_config(tree(task={"_name": "masked_lm"}))
    with pytest.raises(ConfigError, match=r"task\.data is mandatory"):
        require_complete(cfg)
    require_complete(build_config(tree()))


def test_renamed_task_keys() -> None:
    cfg = build_config(tree(task={"_name": "masked_lm", "data": "d", "omit_mask_and_pad": True, "omit_unk": False}))
    assert cfg.task.omit_mask is True and "omit_unk" not in cfg.task


def test_plugin_models_without_dataclass_take_any_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS._entries, "config_test_plugin", object)
    monkeypatch.setitem(ARCHITECTURES._entries, "config_test_plugin", object)
    cfg = build_config(tree(model={"_name": "config_test_plugin", "anything": [1, 2]}))
    assert cfg.model.anything == [1, 2]
    args = argparse.Namespace(arch="config_test_plugin", _name="config_test_plugin", width=3, data="d")
    cfg = build_config(tree(model=args))
    assert isinstance(cfg.model, argparse.Namespace) and cfg.model.width == 3
    assert OmegaConf.is_config(cfg)
