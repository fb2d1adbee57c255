"""BiGS through the commands: trained, continued at a greater length with frozen convolutions, fine-tuned on GLUE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.models.roberta import RobertaModel
from tests.common import run_command
from tests.runs import DATA, TINY_FLAGS, train, train_inner
from tests.tiny_glue import tiny_data_bin, tiny_glue

SIZES = "--encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --bigs-num-ssm 4".split()


def weights(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["model"]


def test_a_longer_model_from_a_shorter_one(tmp_path: Path) -> None:
    flags = [*TINY_FLAGS, *SIZES, "--arch", "bigs_128", "--bigs-padding", "masked", "--no-epoch-checkpoints"]
    train(DATA, *flags, "--max-update", 4, "--save-dir", "short", cwd=tmp_path)
    before = weights(tmp_path / "short/checkpoint_last.pt")
    longer = [*flags, "--max-update", 3, "--tokens-per-sample", 150, "--max-positions", 150, "--save-dir", "long"]
    longer += ["--finetune-from-model", "short/checkpoint_last.pt"]
    more = ["--extend-positions", "tile", "--freeze", "_ssm.", "--lr-scales", "embed_positions=1e-9"]
    done = train(DATA, *longer, *more, cwd=tmp_path)
    assert "extended from 64 to 150 (tile)" in done.stderr + done.stdout and len(train_inner(done.stdout)) == 3
    after = weights(tmp_path / "long/checkpoint_last.pt")
    key = "encoder.sentence_encoder.embed_positions.weight"
    assert torch.allclose(after[key], before[key].repeat(3, 1)[:150], atol=1e-6)
    for name, value in before.items():
        if name != key:
            assert torch.equal(value, after[name]) == ("_ssm." in name or name.endswith("version")), name
    folder, kept = str(tmp_path / "short"), {"bpe": None, "max_positions": 100}
    for how in ("tile", "interpolate"):
        hub = RobertaModel.from_pretrained(folder, "checkpoint_last.pt", str(DATA), extend_positions=how, **kept)
        assert hub.extract_features(torch.tensor([[0, *range(4, 102), 2]])).shape == (1, 100, 16)
        table = hub.model.encoder.sentence_encoder.embed_positions.weight
        last = before[key][35] if how == "tile" else before[key][63]
        assert torch.allclose(table[99], last) and torch.equal(table[0], before[key][0])


@pytest.mark.parametrize("padding", ["masked", "leak"])
def test_glue(padding: str, tmp_path: Path) -> None:
    tiny_data_bin(tmp_path / "data-bin")
    flags = (
        "--cpu --task masked_lm --criterion masked_lm --arch bigs_128 --max-positions 40 --tokens-per-sample 40".split()
    )
    flags += "--optimizer adam --lr 0.01 --max-update 2 --batch-size 4 --num-workers 0 --log-format none".split()
    run_command("train", "data-bin", *flags, *SIZES, "--bigs-padding", padding, cwd=tmp_path, timeout=900)
    tiny_glue(tmp_path / "glue")
    words = (
        "--bpe none --tasks RTE --seeds 1 --jobs 1 --cpu --recipe bigs-frozen --keep-checkpoints all --out out".split()
    )
    words += "--set lr=1e-2 token_types=true epochs=2".split()
    place = ["--checkpoint", "checkpoints/checkpoint_last.pt", "--data-dir", "glue"]
    run_command("glue", *place, *words, cwd=tmp_path, timeout=900)
    (row,) = (json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert row["task"] == "RTE"
    before, after = (
        weights(tmp_path / "checkpoints/checkpoint_last.pt"),
        weights(tmp_path / "out/runs/RTE/seed1/model.pt"),
    )
    for name in before:
        if "_ssm." in name:
            assert torch.equal(before[name], after[name]), name
        elif "value_proj" in name:
            assert not torch.equal(before[name], after[name]), name
