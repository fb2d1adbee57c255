"""The recipe of UltraFastBERT: every file says what the paper says, builds the published model, and trains when shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.build import build_config
from fairseq.dataclass.hydra_yaml import find_primary, read_primary
from fairseq.tasks.masked_lm import MaskedLMTask
from tests import runs

CONFIGS = runs.ROOT / "examples" / "alibi_clap" / "config" / "fff"
TABLES = {"crammed_bert_3072": 2 * 3072 * 768, "crammed_bert_4095": 2 * 4095 * 768}
TABLES["ultrafastbert_1x11"] = TABLES["crammed_bert_4095"] + 4095
NAMES = sorted([*TABLES, *(f"{name}_24h" for name in TABLES)])
SHRUNK = (
    "common.cpu=true common.log_interval=1 model.encoder_layers=2 model.encoder_embed_dim=32 model.encoder_attention_heads=4 "
    "dataset.batch_size=2 dataset.num_workers=0 optimization.max_update=6 optimization.update_freq=[4] "
    "optimization.batch_ramp_updates=4 checkpoint.no_save=true"
).split()


def read(name: str) -> dict[str, Any]:
    return read_primary(find_primary(str(CONFIGS), name)).content


def test_all_files_are_known() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name: str) -> None:
    content = read(name)
    content["task"]["data"] = "-"
    cfg = build_config(content)
    dictionary = Dictionary()
    dictionary.symbols += [str(number) for number in range(32768 - len(dictionary) - 1)]
    dictionary.indices = {symbol: index for index, symbol in enumerate(dictionary.symbols)}
    dictionary.count = [1] * len(dictionary.symbols)
    task = MaskedLMTask(cfg.task, dictionary)
    assert len(task.dictionary) == 32768
    with torch.device("meta"):
        model = task.build_model(cfg.model)
    layers = model.encoder.sentence_encoder.layers
    assert len(layers) == 16
    assert sum(p.numel() for p in layers[0].channel_mixer.parameters()) == TABLES[name.removesuffix("_24h")]
    hours = name.endswith("_24h")
    assert (cfg.lr_scheduler._name, cfg.lr_scheduler.budget) == ("budget_triangular", "hours" if hours else "updates")
    assert (cfg.optimization.max_update, cfg.optimization.stop_time_hours) == ((0, 24) if hours else (20000, 0))
    assert cfg.model.dropout == cfg.model.attention_dropout == cfg.model.activation_dropout == 0
    assert (cfg.optimizer.adam_eps, cfg.optimizer.weight_decay, cfg.optimization.lr) == (1e-12, 0.01, [1e-3])


def test_updates_of_the_ramp_read_900_000_batches() -> None:
    content = read("ultrafastbert_1x11")["optimization"]
    most, ramp = content["update_freq"][0], content["batch_ramp_updates"]
    batches = sum(max(1, -(-most * min(done, ramp) // ramp)) for done in range(content["max_update"]))
    assert abs(batches - 900_000) < 10_000 and most * 128 == 8192 and ramp == 0.6 * content["max_update"]


@pytest.mark.parametrize("name", ["crammed_bert_4095", "ultrafastbert_1x11", "ultrafastbert_1x11_24h"])
def test_trains_when_shrunk(name: str, tmp_path: Path) -> None:
    words = ["--config-dir", CONFIGS, "--config-name", name, f"task.data={runs.DATA}", f"hydra.run.dir={tmp_path}"]
    done = runs.run("fairseq.cli.hydra_train", *words, *SHRUNK, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = runs.train_inner(done.stdout)
    assert len(rows) == 6
    rates = [float(row["lr"]) for row in rows.values()]
    if name.endswith("24h"):
        assert all(0.00025 <= rate < 0.00026 for rate in rates)
    else:
        assert rates == pytest.approx([0.001 * min(0.25 + n / 6, 4 - 4 * n / 6) for n in range(1, 7)], rel=1e-3)
    assert all(row["bsz"] == str(2 * batches) for row, batches in zip(rows.values(), [1, 1, 2, 3, 4, 4], strict=True))
    assert all(float(row["wpb"]) == 128 * float(row["bsz"]) for row in rows.values())
