"""What a command starts from: the checkpoint's dictionary and encoder, and the preprocessed tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.errors import CheckpointError, ConfigError, DataError, DataNotFoundError
from fairseq.finetune.glue_files import TASKS
from fairseq.glue.data import Preparation
from fairseq.glue.pretrained import PretrainedModel, read_pretrained
from tests.common import tiny_dictionary
from tests.tiny_glue import tiny_glue


def checkpoint(path: Path, data: str = "data-bin", bpe: dict[str, Any] | None = None) -> Path:
    """A file as fairseq-train writes it, with one tensor."""
    cfg = {
        "model": {"_name": "roberta", "encoder_layers": 2, "max_positions": 64},
        "task": {"_name": "masked_lm", "data": data},
        "bpe": bpe,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    embedding = torch.zeros(45, 4)
    tied = {"embed_tokens.weight": embedding, "version": torch.tensor([3.0])}
    weights = {f"encoder.sentence_encoder.{name}": value for name, value in tied.items()}
    weights["encoder.lm_head.weight"] = embedding
    torch.save({"cfg": cfg, "model": weights, "args": None}, path)
    return path


def save_dictionary(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tiny_dictionary().save(str(directory / "dict.txt"))
    return directory / "dict.txt"


def test_relative_paths_of_the_training_are_looked_for_above_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path / "..")
    files = {"bpe_merges": "bpe/merges.txt", "bpe_vocab": "bpe/vocab.json"}
    file = checkpoint(tmp_path / "checkpoints" / "small" / "checkpoint_best.pt", bpe={"_name": "hf_byte_bpe", **files})
    save_dictionary(tmp_path / "data-bin")
    (tmp_path / "bpe").mkdir()
    for name in files.values():
        (tmp_path / name).write_text("{}", encoding="utf-8")
    found = read_pretrained(file.parent, None, None, {})  # the directory stands for the best checkpoint in it
    assert found.path == file and found.dictionary == tmp_path / "data-bin" / "dict.txt"
    assert found.bpe is not None and found.bpe["bpe_merges"] == str(tmp_path / "bpe" / "merges.txt")
    assert (found.parameters, found.symbols, found.max_positions, found.has_table) == (180, 45, 64, False)
    assert found.model == {"_name": "roberta", "encoder_layers": 2}
    given = read_pretrained(file, None, None, {"bpe_vocab": "other.json"}).bpe
    assert given is not None and given["bpe_vocab"] == "other.json" and given["_name"] == "hf_byte_bpe"
    assert read_pretrained(file, None, "none", {}).bpe is None


def test_a_dictionary_beside_the_checkpoint_comes_first(tmp_path: Path):
    save_dictionary(tmp_path / "data-bin")
    beside = save_dictionary(tmp_path / "model")
    assert read_pretrained(checkpoint(tmp_path / "model" / "model.pt"), None, "none", {}).dictionary == beside


def test_what_the_checkpoint_does_not_know(tmp_path: Path):
    file = checkpoint(tmp_path / "a" / "model.pt")
    with pytest.raises(DataNotFoundError, match=r"no dict.txt beside .* nor in data-bin; give it with --dict"):
        read_pretrained(file, None, "none", {})
    with pytest.raises(ConfigError, match="give --bpe"):
        read_pretrained(file, str(save_dictionary(tmp_path)), None, {})
    with pytest.raises(CheckpointError, match="does not exist"):
        read_pretrained(tmp_path / "b.pt", None, None, {})


def begin(tmp_path: Path, symbols: int | None = 45) -> PretrainedModel:
    return PretrainedModel(tmp_path / "m.pt", "c", {}, 64, False, 1, symbols, save_dictionary(tmp_path), None)


def test_preprocessing(tmp_path: Path):
    glue = tiny_glue(tmp_path / "glue", rows=12)
    preparation = Preparation(begin(tmp_path), glue, tmp_path / "data")
    task = TASKS["RTE"]
    assert preparation.find(task) is None
    made = preparation.make(task)
    assert made.rows == {"train": 12, "valid": 20, "test": 10} and made.valid_subsets() == ["valid"]
    assert sum(made.labels["valid"].values()) == 20 and set(made.labels["valid"]) <= set(task.labels)
    assert preparation.find(task) == made
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["RTE"]
    numbers = preparation.make(TASKS["STS-B"])
    assert (numbers.path / "label" / "train.label").is_file() and numbers.labels["valid"] == {}
    # other raw data is another thing
    with (glue / "RTE" / "dev.tsv").open("a", encoding="utf-8") as handle:
        handle.write("20\tw01\tw02\tentailment\n")
    assert preparation.find(task) is None and preparation.make(task).digest != made.digest


def test_fewer_training_rows(tmp_path: Path):
    glue = tiny_glue(tmp_path / "glue", rows=12)
    for name, rows in (("CoLA", 5), ("RTE", 5), ("STS-B", 5)):
        few = Preparation(begin(tmp_path), glue, tmp_path / "few", examples=5).make(TASKS[name])
        assert few.rows == {"train": rows, "valid": 20, "test": 10}
    again = Preparation(begin(tmp_path), glue, tmp_path / "again", examples=5).make(TASKS["CoLA"])
    first, second = (load_indexed_dataset(str(tmp_path / d / "CoLA" / "input0" / "train")) for d in ("few", "again"))
    assert [line.tolist() for line in first] == [line.tolist() for line in second]
    assert json.loads((again.path / "data.json").read_text())["identity"]["train_examples"] == 5
    every = Preparation(begin(tmp_path), glue, tmp_path / "every", examples=500).make(TASKS["CoLA"])
    assert every.rows["train"] == 12


def test_a_dictionary_of_another_model(tmp_path: Path):
    with pytest.raises(DataError, match="has 45 symbols .* embeddings of 99; give the dict.txt"):
        Preparation(begin(tmp_path, symbols=99), tmp_path, tmp_path / "data")
