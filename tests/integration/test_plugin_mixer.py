"""A plugin's token mixer and channel mixer: chosen by name, with flags, trained, saved and loaded, no line in the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs import DATA, ROOT, environment, run, train, train_inner

PLUGIN = ROOT / "tests" / "data" / "plugin_mixer"
CHOICE = "--token-mixer window --channel-mixer gated --window-reach 3 --gated-power 1".split()
MODEL = (
    "--arch roberta --encoder-layers 2 --encoder-embed-dim 16 --encoder-attention-heads 2 --max-positions 64".split()
)
FLAGS = (
    f"--cpu --user-dir {PLUGIN} --task masked_lm --criterion masked_lm --tokens-per-sample 64 "
    "--sample-break-mode complete --optimizer adam --lr 0.01 --batch-size 8 --max-update 5 --log-format json "
    "--log-interval 1 --num-workers 0 --skip-invalid-size-inputs-valid-test"
).split()


def test_trained_by_flags_and_loaded_again(tmp_path: Path) -> None:
    rows = train_inner(train(DATA, *FLAGS, *MODEL, *CHOICE, cwd=tmp_path).stdout)
    assert list(rows) == ["1", "2", "3", "4", "5"]
    assert all(float(row["gnorm"]) > 0 for row in rows.values())
    path = tmp_path / "checkpoints" / "checkpoint_last.pt"
    stored = torch.load(path, weights_only=False)
    own = {
        key: value
        for key, value in stored["cfg"]["model"].items()
        if key.startswith(("window", "gated", "token_", "ch"))
    }
    wanted = {"token_mixer": "window", "channel_mixer": "gated", "window_reach": 3, "gated_power": 1}
    assert {key: own[key] for key in wanted} == wanted
    assert not {"window_gated", "gated_width"} & own.keys(), "what is at its default is not stored"
    assert stored["model"]["encoder.sentence_encoder.layers.0.self_attn.weight"].shape == (7,)
    for words, message in (
        (
            ["fairseq.cli.train", DATA, *(FLAGS[:1] + FLAGS[3:]), *MODEL],
            "it was trained with token_mixer=window, channel_mixer=gated",
        ),
        (["fairseq.cli.validate", DATA, "--cpu", "--batch-size", 8, "--path", path], "unknown token mixer 'window'"),
    ):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "--user-dir" in done.stderr, done.stderr
    code = (
        "from fairseq.dataclass.user_module import import_user_module; import argparse, torch\n"
        f"import_user_module(argparse.Namespace(user_dir={str(PLUGIN)!r}))\n"
        "from fairseq.models.roberta import RobertaModel\n"
        f"hub = RobertaModel.from_pretrained({str(path.parent)!r}, {path.name!r}, {str(DATA)!r}, bpe=None).eval()\n"
        "layer = hub.model.encoder.sentence_encoder.layers[0]\n"
        "print(type(layer.self_attn).__name__, layer.self_attn.reach, type(layer.channel_mixer).__name__, "
        "layer.channel_mixer.power, tuple(hub.extract_features(torch.tensor([[0, 5, 6, 2]])).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "Window 3 Gated 1 (1, 4, 16)", done.stdout + done.stderr


def test_trained_by_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"""# @package _group_
common: {{cpu: true, log_format: json, log_interval: 1, user_dir: {PLUGIN}}}
task: {{_name: masked_lm, data: {DATA}, sample_break_mode: complete, tokens_per_sample: 64}}
criterion: masked_lm
dataset: {{batch_size: 8, num_workers: 0, skip_invalid_size_inputs_valid_test: true}}
optimizer: {{_name: adam}}
lr_scheduler: fixed
optimization: {{lr: [0.01], max_update: 5}}
model: {{_name: roberta, encoder_layers: 2, encoder_embed_dim: 16, encoder_attention_heads: 2, max_positions: 64,
  token_mixer: window, channel_mixer: gated, window_reach: 3, gated_power: 1}}
"""
    )
    by_flags = train_inner(train(DATA, *FLAGS, *MODEL, *CHOICE, cwd=tmp_path).stdout)
    done = run("fairseq.cli.hydra_train", "--config-dir", tmp_path, "--config-name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    by_yaml = train_inner(done.stdout)
    assert [row["loss"] for row in by_yaml.values()] == [row["loss"] for row in by_flags.values()]
    wrong = run(
        "fairseq.cli.hydra_train", "--config-dir", tmp_path, "--config-name", "run", "model.windw_reach=3", cwd=tmp_path
    )
    assert wrong.returncode == 2 and "unknown key 'model.windw_reach'; did you mean 'window_reach'?" in wrong.stderr


def test_its_flags_are_in_the_help() -> None:
    done = run("fairseq.cli.train", DATA, *FLAGS, *MODEL, *CHOICE, "--help", cwd=ROOT)
    assert "token mixer: window:" in done.stdout and "channel mixer: gated:" in done.stdout
    for flag in ("--window-reach", "--window-gated", "--gated-width", "--gated-power {1,2}"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--window-reech 3", "unknown option --window-reech; did you mean --window-reach?"),
        ("--gated-power 3", "must be one of 1, 2, but is 3"),
        ("--token-mixer windw", "unknown token mixer 'windw'; did you mean 'window'?"),
        (
            "--token-mixer self_attention",
            "unknown option --window-reach: it is an option of token mixer 'window', which is not chosen (set token_mixer=window)",
        ),
    ],
)
def test_mistakes_in_its_options_are_named(words: str, message: str) -> None:
    done = run("fairseq.cli.train", DATA, *FLAGS, *MODEL, *CHOICE, *words.split(), cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr, done.stderr
