"""Fine-tuning without ``--bpe`` keeps that of the checkpoint it starts from, with its files where they are."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from fairseq.checkpoint.reader import read
from fairseq.cli.train import cli_main
from tests.downstream import TINY
from tests.runs import DATA, TINY_FLAGS


def train(*flags: object) -> dict[str, object]:
    cli_main(argv=[str(word) for word in (DATA, *TINY_FLAGS, "--max-update", 1, *flags)])
    bpe = read("checkpoints/checkpoint_last.pt")["cfg"].bpe
    shutil.rmtree("checkpoints")
    return bpe


def test_the_bpe_of_the_pretrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    shutil.copytree(TINY, tmp_path / "files")
    files = ["--gpt2-encoder-json", "files/encoder.json", "--gpt2-vocab-bpe", "files/vocab.bpe"]
    cli_main(argv=[str(word) for word in (DATA, *TINY_FLAGS, "--max-update", 1, "--bpe", "gpt2", *files)])
    shutil.move("checkpoints/checkpoint_last.pt", "model.pt")
    shutil.rmtree("checkpoints")
    absolute = {
        "_name": "gpt2",
        "gpt2_encoder_json": str(tmp_path / "files/encoder.json"),
        "gpt2_vocab_bpe": str(tmp_path / "files/vocab.bpe"),
    }
    assert train("--finetune-from-model", "model.pt") == absolute
    assert train("--restore-file", "model.pt", "--reset-optimizer", "--reset-dataloader") == absolute
    assert "the BPE is that of model.pt: gpt2" in caplog.text
    assert train() is None
    mine = train("--finetune-from-model", "model.pt", "--bpe", "sentencepiece", "--sentencepiece-model", "x.model")
    assert mine["_name"] == "sentencepiece"
