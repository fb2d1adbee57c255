"""A fast feed-forward model with ALiBi and the CLAP head: trained, resumed, loaded again, fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fairseq.checkpoint.safe_load import load
from fairseq.models.roberta import RobertaModel
from tests.common import run_command, tiny_data_bin
from tests.runs import ROOT
from tests.tiny_glue import tiny_glue

FLAGS = (
    "--cpu --task masked_lm --criterion masked_lm --arch roberta_alibi_clap --channel-mixer fff --fff-depth 4 --fff-trees 2 "
    "--encoder-layers 2 --encoder-embed-dim 16 --encoder-attention-heads 2 --dropout 0.1 --max-positions 40 "
    "--tokens-per-sample 40 --optimizer adamw --weight-decay 0.01 --lr 0.005 --batch-size 4 --num-workers 0 --log-format none "
    "--save-interval-updates 3 --no-epoch-checkpoints --seed 3"
).split()
CONFIGS = ROOT / "examples" / "alibi_clap" / "config" / "fff"
SHRUNK = (
    "common.cpu=true common.log_format=none model.encoder_layers=2 model.encoder_embed_dim=16 model.encoder_attention_heads=2 "
    "dataset.batch_size=1 dataset.num_workers=0 optimization.max_update=3 optimization.update_freq=[2] "
    "optimization.batch_ramp_updates=2 optimizer.fff_sparse_update=true checkpoint.save_dir=paper"
)
RECIPE = """\
about: For a test.
select: last
all: {epochs: 1, warmup: 0.1, batch_size: 16, lr: 2e-2, optimizer: adam, lr_scheduler: polynomial_decay, pooling: mean}
"""


def train(place: Path, save_dir: str, updates: int) -> Path:
    run_command("train", "data-bin", *FLAGS, "--max-update", updates, "--save-dir", save_dir, cwd=place, timeout=900)
    return place / save_dir / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``data-bin`` and, in ``whole``, the checkpoint of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("fff")
    tiny_data_bin(directory / "data-bin")
    train(directory, "whole", 6)
    return directory


def test_resumed_to_the_last_bit(place: Path) -> None:
    train(place, "parts", 3)
    whole, parts = load(place / "whole" / "checkpoint_last.pt"), load(train(place, "parts", 6))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(value, parts["model"][key]) for key, value in whole["model"].items())
    moments = [state["last_optimizer_state"]["state"] for state in (whole, parts)]
    assert all(torch.equal(value["exp_avg_sq"], moments[1][key]["exp_avg_sq"]) for key, value in moments[0].items())
    groups = whole["last_optimizer_state"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.01]


def test_loaded_again(place: Path) -> None:
    hub = RobertaModel.from_pretrained(
        str(place / "whole"), "checkpoint_last.pt", str(place / "data-bin"), bpe=None
    ).eval()
    layer = hub.model.encoder.sentence_encoder.layers[1].channel_mixer
    assert (layer.depth, layer.num_trees) == (4, 2) and layer.weight_in.shape == (62, 16)
    stored = load(place / "whole" / "checkpoint_last.pt")
    assert torch.equal(layer.weight_out, stored["model"]["encoder.sentence_encoder.layers.1.channel_mixer.weight_out"])
    assert stored["cfg"]["model"]["channel_mixer"] == "fff" and stored["cfg"]["model"]["fff_depth"] == 4
    with torch.no_grad():
        assert torch.isfinite(hub.extract_features(hub.encode("w01 w02"))).all()  # type: ignore[arg-type]


def test_fine_tuned(place: Path) -> None:
    tiny_glue(place / "glue")
    (place / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    words = "--bpe none --tasks CoLA --seeds 1 --jobs 1 --cpu --data-dir glue --recipe mine.yaml --out out --predict-test".split()
    run_command("glue", "--checkpoint", "whole/checkpoint_last.pt", *words, cwd=place, timeout=900)
    rows = [json.loads(line) for line in (place / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["CoLA"]
    tuned = load(place / "out" / "runs" / "CoLA" / "seed1" / "model.pt")["model"]
    assert "encoder.sentence_encoder.layers.0.channel_mixer.weight_in" in tuned


def test_the_recipe_of_the_paper(place: Path) -> None:
    """Pretrained with blocks, masks and schedule of UltraFastBERT, updated sparsely, fine-tuned by the rules of cramming."""
    words = (
        f"--config-dir {CONFIGS} --config-name ultrafastbert_1x11 task.data=data-bin hydra.run.dir=. {SHRUNK}".split()
    )
    run_command("hydra-train", *words, cwd=place, timeout=900)
    stored = load(place / "paper" / "checkpoint_last.pt")
    assert stored["cfg"]["optimizer"]["fff_sparse_update"] is True
    moments = stored["last_optimizer_state"]["state"].values()
    tables = [state["exp_avg_sq"] for state in moments if state["exp_avg_sq"].shape == (4095, 16)]
    assert len(tables) == 4 and all(0 < int(table.any(dim=1).sum()) < 4095 for table in tables)
    tiny_glue(place / "glue-paper", rows=16)
    options = (
        "--recipe glue-sane --set epochs=1 --bpe none --tasks CoLA --seeds 1 --jobs 1 --cpu --predict-test".split()
    )
    more = ("--data-dir", "glue-paper", "--out", "sane")
    run_command("glue", "--checkpoint", "paper/checkpoint_last.pt", *options, *more, cwd=place, timeout=900)
    tuned = load(place / "sane" / "runs" / "CoLA" / "seed1" / "model.pt")
    assert tuned["cfg"]["model"]["channel_mixer"] == "fff" and tuned["cfg"]["optimizer"]["_name"] == "adamw"
