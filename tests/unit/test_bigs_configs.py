"""The pretraining recipes of BiGS: every file composes, and has the published numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.dataclass.build import build_config, nest
from fairseq.dataclass.hydra_yaml import find_primary, read_primary
from fairseq.models import build_model
from fairseq.optim.fairseq_optimizer import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from tests.unit.roberta import Task

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "alibi_clap" / "config" / "bigs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def composed(name: str) -> Any:
    return build_config(read_primary(find_primary(str(FOLDER), name)).content)


@pytest.mark.parametrize("name", NAMES)
def test_models(name: str) -> None:
    cfg = composed(name)
    length = int(name.split("_")[1])
    with torch.device("meta"):
        model: Any = build_model(cfg.model, Task(limit=cfg.task.tokens_per_sample))
    assert model.max_positions() == cfg.task.tokens_per_sample == length
    tokens = length * cfg.dataset.batch_size * cfg.optimization.update_freq[0]
    assert tokens == pytest.approx(128 * 1048, rel=0.03)
    assert not any(layer.self_attn.reads_padding for layer in model.encoder.sentence_encoder.layers)


def test_the_learning_rate_falls_to_a_tenth() -> None:
    cfg = composed("bigs_128")
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule: Any = build_lr_scheduler(cfg.lr_scheduler, build_optimizer(cfg.optimizer, [("weight", parameter)]))
    rates = [schedule.step_update(update) for update in (0, 1000, 2000, 51000, 100000)]
    wanted = [0.0, 3e-4, 6e-4, 6e-4 * (0.9 * 0.5 * (1 + math.cos(math.pi * 49 / 98)) + 0.1), 6e-5]
    assert rates == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ["bigs_128", "bigs_128_textbook"])
def test_groups_of_the_optimizer(name: str) -> None:
    cfg = composed(name)
    sizes = {"encoder_layers": 1, "encoder_embed_dim": 12, "encoder_ffn_embed_dim": 20}
    settings = {**{key: cfg.model[key] for key in cfg.model if key not in ("_name", *sizes)}, **sizes}
    model: Any = build_model(argparse.Namespace(arch="bigs_128", **settings), Task())
    optimizer = build_optimizer(cfg.optimizer, list(model.named_parameters()))
    names = {parameter: key for key, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            key = names[parameter]
            textbook = "_ssm." in key and name.endswith("textbook")
            free = "bias" in key or "norm" in key or textbook
            assert group["weight_decay"] == (0.0 if free else 0.05), key
            assert group["lr"] == pytest.approx(1e-3 if textbook else 6e-4), key


def test_published_models_keep_their_length() -> None:
    """The number of positions follows the samples only where the architecture says nothing."""
    for arch, wanted in (("bigs_512", None), ("roberta_bigs", 64)):
        args = argparse.Namespace(arch=arch, task="masked_lm", tokens_per_sample=64)
        assert nest(args)["model"].get("max_positions") == wanted
    task = Task()
    with torch.device("meta"):
        model: Any = build_model(build_config({"task": "masked_lm", "model": "bigs_4096"}).model, task)
    assert len(model.encoder.sentence_encoder.embed_positions.weight) == 4096
