"""The fork's configurations: every file composes, means what its table says, and builds a model of the right size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.build import build_config
from fairseq.dataclass.hydra_yaml import Primary, find_primary, read_primary
from fairseq.tasks.masked_lm import MaskedLMTask

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ALIBI = 124_301_913
ZERO = 123_655_681
COUNTS = {
    "base": 124_696_665,
    "baseline_pile": 125_876_313,
    "large_pile": 356_983_897,
    "sinusoidal": ALIBI,
    "sinusoidal_pile": ALIBI,
    "alibi": ALIBI,
    "alibi_asymmetrical": ALIBI,
    "alibi_pile": ALIBI,
    "alibi_large_pile": 354_884_697,
    "clap": 123_657_985,
    "learned_clap": 124_052_737,
    "learned_clap_unnormalized": 124_052_737,
    "learned_clap_pile": 125_232_385,
    "learned_clap_large_pile": 355_879_937,
    "zero_clap": ZERO,
    "zero_clap_attention_dropout": ZERO,
    "zero_clap_scaled_embedding_attention_dropout": ZERO,
    "zero_clap_unnormalized_attention_dropout": ZERO,
    "zero_clap_self_masking": ZERO,
    "zero_clap_pile": ZERO,
    "zero_clap_large_pile": 353_777_665,
}


def primary(folder: str, kind: str, name: str) -> Primary:
    return read_primary(find_primary(str(EXAMPLES / folder / "config" / kind), name))


def names(folder: str, kind: str) -> list[str]:
    return sorted(path.stem for path in (EXAMPLES / folder / "config" / kind).glob("*.yaml"))


def test_both_folders_have_every_configuration():
    for folder in ("alibi_clap", "roberta"):
        assert names(folder, "pretraining") == sorted(COUNTS)
        assert len(names(folder, "finetuning")) == 8
    for kind in ("pretraining", "finetuning"):
        for name in names("roberta", kind):
            path = f"config/{kind}/{name}.yaml"
            text = (EXAMPLES / "roberta" / path).read_text()
            assert text.endswith(f"defaults:\n  - ../../../alibi_clap/config/{kind}/{name}\n")
            assert name == "base" or len((EXAMPLES / "alibi_clap" / path).read_text().splitlines()) <= 10
    old, new = (primary(folder, "pretraining", "alibi") for folder in ("roberta", "alibi_clap"))
    assert old.content == new.content and not old.defaults and not new.defaults


@pytest.mark.parametrize("name", COUNTS)
def test_pretraining(name):
    content: dict[str, Any] = primary("alibi_clap", "pretraining", name).content
    content["task"]["data"] = "-"
    cfg = build_config(content)
    symbols = 50262 if name.startswith("zero_clap") else 50265
    assert cfg.task.omit_mask == (symbols == 50262)
    dictionary = Dictionary()
    dictionary.symbols += [str(number) for number in range(symbols - 4)]
    if not cfg.task.omit_mask:
        dictionary.symbols[-1] = "<mask>"
    dictionary.indices = {symbol: index for index, symbol in enumerate(dictionary.symbols)}
    dictionary.count += [1] * (symbols - 4)
    with torch.device("meta"):
        model = MaskedLMTask(cfg.task, dictionary).build_model(cfg.model)
    assert len(dictionary) == symbols
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    pile, large = name.endswith("pile"), name.endswith("large_pile")
    assert (cfg.task.tokens_per_sample, cfg.model.max_positions) == ((2048,) * 2 if pile else (512,) * 2)
    assert cfg.lr_scheduler._name == ("cosine" if pile else "polynomial_decay")
    assert cfg.lr_scheduler.warmup_updates == 10000
    assert cfg.optimization.lr == ([4e-4] if large else [6e-4] if pile else [5e-4])
    assert cfg.optimization.update_freq == ([32] if large else [16])
    assert cfg.dataset.batch_size == (2 if large else 4 if pile else 16)
    assert cfg.model.dropout == (0.0 if "clap" in name else 0.1)
    without = name in ("clap", "zero_clap", "zero_clap_self_masking")
    assert cfg.model.attention_dropout == (0.0 if without else 0.1)


def test_pile_schedule():
    content = primary("alibi_clap", "pretraining", "zero_clap_large_pile").content
    assert content["lr_scheduler"] == {
        "_name": "cosine",
        "warmup_updates": 10000,
        "lr_period_updates": 146390,
        "lr_shrink": 1.0,
        "min_lr": 4e-05,
    }
    assert content["optimization"]["max_update"] == 133082 and content["optimization"]["max_epoch"] == 1
    assert content["model"]["no_scale_embedding"] is False and content["task"]["shorten_method"] == "truncate"


def test_finetuning():
    rows = {name: primary("alibi_clap", "finetuning", name).content for name in names("alibi_clap", "finetuning")}
    updates = {name: row["optimization"]["max_update"] for name, row in rows.items()}
    assert updates == {
        "cola": 5336,
        "mnli": 123873,
        "mrpc": 2296,
        "qnli": 33112,
        "qqp": 113272,
        "rte": 2036,
        "sst_2": 20935,
        "sts_b": 3598,
    }
    assert rows["mnli"]["task"]["num_classes"] == 3 and rows["rte"]["optimization"]["lr"] == [2e-05]
    assert rows["sts_b"]["criterion"] == {"_name": "sentence_prediction", "regression_target": True}
    assert rows["sts_b"]["checkpoint"]["best_checkpoint_metric"] == "loss"
    assert rows["cola"]["checkpoint"]["best_checkpoint_metric"] == "accuracy"
    assert rows["qqp"]["optimizer"]["adam_betas"] == "(0.9,0.98)"
