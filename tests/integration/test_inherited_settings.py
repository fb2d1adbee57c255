"""Fine-tuning without ``--bpe`` or ``--arch`` keeps those of the checkpoint it starts from, with the BPE's files where they are."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from fairseq.checkpoint.reader import read
from fairseq.cli import preprocess_task
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


FLAGS = "--cpu --optimizer adam --lr 0.001 --batch-size 4 --max-update 1 --num-workers 0 --disable-validation".split()


def test_the_architecture_of_the_pretrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli_main(argv=[str(word) for word in (DATA, *TINY_FLAGS, "--max-update", 1, "--save-dir", "first")])
    start = read("first/checkpoint_last.pt")
    mlm = ["--task", "masked_lm", "--criterion", "masked_lm", "--tokens-per-sample", "64"]
    cli_main(argv=[str(DATA), *FLAGS, *mlm, "--finetune-from-model", "first/checkpoint_last.pt"])
    assert read("checkpoints/checkpoint_last.pt")["cfg"].model == start["cfg"].model
    for more, sentence in (
        ([], "no architecture is given: pass --arch, for example --arch roberta_base"),
        (["--finetune-from-model", "nowhere.pt"], "--finetune-from-model nowhere.pt does not exist"),
    ):
        with pytest.raises(SystemExit):
            cli_main(argv=[str(DATA), *FLAGS, *mlm, *more])
        assert f"fairseq-train: error: {sentence}" in capsys.readouterr().err


def test_a_task_with_a_length_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest example is that of the pretrained model: 64 tokens, not the 512 of the task."""
    monkeypatch.chdir(tmp_path)
    cli_main(argv=[str(word) for word in (DATA, *TINY_FLAGS, "--max-update", 1, "--save-dir", "first")])
    for split in ("train", "dev"):
        for name, lines in ((f"{split}.raw.input0", "11 262\n262 13\n"), (f"{split}.label", "good\nbad\n")):
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / "raw" / name).write_text(lines * 4)
    made = ["--task", "plain", "--data-dir", "raw", "--dest", "data", "--srcdict", f"{DATA}/dict.txt"]
    preprocess_task.main(preprocess_task.get_parser().parse_args(made))
    task = "--task sentence_prediction --criterion sentence_prediction --num-classes 2".split()
    cli_main(argv=["data", *FLAGS, *task, "--finetune-from-model", "first/checkpoint_last.pt"])
    cfg = read("checkpoints/checkpoint_last.pt")["cfg"]
    assert cfg.model.max_positions == cfg.task.max_positions == 64 and cfg.model.encoder_layers == 2
