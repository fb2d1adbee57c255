"""The stored form of the configuration: the layout of the original's checkpoints, in both directions."""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any

import pytest
from omegaconf import OmegaConf

from fairseq.dataclass.build import build_config
from fairseq.dataclass.state import changed_settings, config_from_state, config_to_state
from fairseq.errors import OutOfScopeError
from tests.common import ROOT

DATA = ROOT / "tests" / "data" / "config"


def stored(name: str) -> dict[str, Any]:
    """The ``cfg`` of a checkpoint that the original wrote (``Namespace`` objects are marked in the file)."""

    def revive(node: dict[str, Any]) -> Any:
        return argparse.Namespace(**node["Namespace"]) if set(node) == {"Namespace"} else node

    return json.loads((DATA / f"{name}.json").read_text(), object_hook=revive)


def layout(node: Any) -> Any:
    """Keys in order, and the types of the values."""
    if isinstance(node, dict):
        return [(key, layout(value)) for key, value in node.items()]
    return type(node).__name__


def test_yaml_run_round_trip_is_exact() -> None:
    original = stored("yaml_run")
    state = config_to_state(config_from_state(original))
    assert layout(state) == layout(original)
    assert state == original


def test_yaml_run_from_its_settings_has_the_original_layout() -> None:
    original = stored("yaml_run")
    given = OmegaConf.to_container(OmegaConf.load(DATA / "baseline.yaml"))
    given["task"]["data"] = "data-bin"  # type: ignore[index,call-overload]
    given["checkpoint"] |= {  # type: ignore[index,call-overload]
        "save_dir": "runs/baseline/ckpt",
        "finetune_from_model": original["checkpoint"]["finetune_from_model"],
    }
    state = config_to_state(build_config({**given, "job_logging_cfg": original["job_logging_cfg"]}))  # type: ignore[dict-item]
    model, expected = state.pop("model"), original.pop("model")
    assert layout(state) == layout(original)
    assert state == original
    assert model.items() <= expected.items()  # the architecture fills in the rest


def test_command_line_run_is_read_and_written_as_plain_dicts() -> None:
    original = stored("command_line_run")
    cfg = config_from_state(original)
    flat = vars(original["model"])
    assert cfg.model.encoder_layers == 2 and cfg.model.l2norm_embedding is True and "max_update" not in cfg.model
    state = config_to_state(cfg)
    assert all(value == flat[key] for key, value in state["model"].items())
    for section, node in state.items():
        if section not in ("model", "scoring"):
            assert node == original[section], section
    assert config_from_state(state) == cfg


def test_unknown_tasks_and_keys_do_not_stop_reading(caplog: pytest.LogCaptureFixture) -> None:
    original = stored("yaml_run")
    original["task"] = {"_name": "task_of_a_plugin", "data": "d", "classes": 3}
    original["dataset"]["brand_new"] = 1
    original["optimization"]["debug_param_names"] = False
    with caplog.at_level(logging.WARNING):
        cfg = config_from_state(original)
    assert cfg.task.classes == 3
    assert [record.getMessage().count("dataset.brand_new") for record in caplog.records] == [1]


def test_stored_out_of_scope_values() -> None:
    original = stored("yaml_run")
    original["task"]["include_index"] = True
    original["common"]["tpu"] = True  # how it was trained does not matter to whoever loads it
    assert config_from_state(original).common.tpu is False
    original["model"]["quant_noise_pq"] = 0.1
    with pytest.raises(OutOfScopeError, match="quant_noise_pq"):
        config_from_state(original)


def test_overrides() -> None:
    original = stored("yaml_run")
    cfg = config_from_state(
        original, {"data": "elsewhere", "dropout": 0.3, "bpe": "gpt2", "gpt2_vocab_bpe": "v", "nothing": 1}
    )
    assert cfg.task.data == "elsewhere" and cfg.model.dropout == 0.3
    assert cfg.bpe._name == "gpt2" and cfg.bpe.gpt2_vocab_bpe == "v" and cfg.bpe.gpt2_encoder_json.startswith("http")
    assert config_from_state(original, {"load_checkpoint_heads": True}).model.load_checkpoint_heads is True
    assert config_from_state(original, {"task": {"mask_prob": 0.4}}).task.mask_prob == 0.4
    assert original["task"]["data"] == "data-bin"
    cfg = config_from_state(stored("command_line_run"), {"data": "elsewhere", "seed": 3})
    assert cfg.task.data == "elsewhere" and cfg.common.seed == 3 and cfg.task.seed == 3


def test_args_of_2019() -> None:
    args = argparse.Namespace(
        arch="roberta_base",
        task="masked_lm",
        criterion="masked_lm",
        optimizer="adam",
        lr_scheduler="polynomial_decay",
        data=["d", "e"],
        lr=0.5,
        max_positions=512,
        tokens_per_sample=512,
        max_sentences=8,
        min_lr=1e-9,
        remove_bpe=None,
        total_num_update=10,
        adam_betas="(0.9, 0.98)",
        dropout=0.1,
        bert_pickled_thing=1,
        log_keys=None,
    )
    cfg = config_from_state(args, {"data": "here"})
    assert cfg.task.data == "here" and cfg.optimization.lr == [0.5] and cfg.optimization.stop_min_lr == 1e-9
    assert cfg.model == {"_name": "roberta_base", "max_positions": 512, "max_source_positions": 512, "dropout": 0.1}
    assert cfg.dataset.batch_size == 8 and cfg.lr_scheduler.total_num_update == 10.0
    assert args.lr == 0.5  # untouched


def test_new_keys_are_written_only_when_not_default() -> None:
    state = config_to_state(config_from_state(stored("yaml_run")))
    assert set(state["model"]) == set(stored("yaml_run")["model"])


def test_changed_settings():
    cfg = build_config(
        {
            "common": {"seed": 7, "log_interval": 100},
            "dataset": {"max_tokens": 64},
            "optimization": {"lr": [0.5], "max_update": 9},
            "task": {"_name": "masked_lm", "data": "d", "mask_prob": 0.15},
            "criterion": "masked_lm",
            "model": {"_name": "roberta", "encoder_layers": 2},
            "optimizer": {"_name": "adam", "adam_eps": 1e-6},
            "lr_scheduler": "polynomial_decay",
        }
    )
    assert changed_settings(cfg) == {
        "common.seed": 7,
        "dataset.max_tokens": 64,
        "optimization.max_update": 9,
        "optimization.lr": [0.5],
        "model": "roberta",
        "model.encoder_layers": 2,
        "task": "masked_lm",
        "task.data": "d",
        "criterion": "masked_lm",
        "optimizer": "adam",
        "optimizer.adam_eps": 1e-6,
        "lr_scheduler": "polynomial_decay",
    }
