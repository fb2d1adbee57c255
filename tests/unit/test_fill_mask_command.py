"""``fairseq-fill-mask``."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from fairseq.cli import fill_mask

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    shutil.copyfile(DATA / "roberta/baseline/checkpoint.pt", place / "checkpoint_best.pt")
    shutil.copyfile(DATA / "reference/data-bin/dict.txt", place / "dict.txt")
    return place


def run(*words: object) -> None:
    fill_mask.cli_main([str(word) for word in words])


def test_tables(directory, capsys):
    run("--path", directory, "--bpe", "none", "--topk", 3, "102 <mask> 350", "<mask> 8 <mask>")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "102 <mask> 350"
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert lines[4] == "" and lines[5] == "<mask> 8 <mask>" and lines[6] == " mask 1" and lines[10] == " mask 2"


def test_json_from_standard_input(directory, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("102 <mask>\n\n19 <mask> 8\n"))
    run("--path", directory / "checkpoint_best.pt", "--bpe", "none", "--json")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["input"] for answer in answers] == ["102 <mask>", "19 <mask> 8"]
    best = answers[0]["masks"][0][0]
    assert set(best) == {"text", "probability", "token"} and 0 < best["probability"] < 1


def test_dictionary_of_the_training(directory, tmp_path, capsys):
    state = torch.load(directory / "checkpoint_best.pt", weights_only=True)
    state["cfg"]["task"]["data"] = str(directory)
    torch.save(state, tmp_path / "checkpoint_last.pt")
    run("--path", tmp_path, "--bpe", "none", "--topk", 1, "102 <mask>")
    assert capsys.readouterr().out.startswith("102 <mask>\n")


def test_gpt2_bpe_files_on_the_command_line(directory, capsys):
    tiny = DATA / "gpt2_tiny"
    files = ["--gpt2-encoder-json", tiny / "encoder.json", "--gpt2-vocab-bpe", tiny / "vocab.bpe"]
    run("--path", directory, *files, "--topk", 1, "a <mask>")
    assert capsys.readouterr().out.startswith("a <mask>\n")


def test_gpt2_bpe_files_beside_the_model(directory, tmp_path, capsys):
    for place in (directory, DATA / "gpt2_tiny"):
        shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    run("--path", tmp_path / "checkpoint_best.pt", "--topk", 1, "a <mask>")
    assert capsys.readouterr().out.startswith("a <mask>\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--path", "nowhere", "<mask>"], "neither a checkpoint"),
        (["--path", ".", "--topk", "0", "<mask>"], "--topk must be at least 1"),
        (["--path", "EMPTY", "<mask>"], "there is no model.pt"),
        (["--path", "MODEL", "--bpe", "none", "no mask here"], "no <mask> to fill in"),
        (["--path", "MODEL", "--data", "nowhere", "--bpe", "none", "<mask>"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(words, message, directory, tmp_path, capsys):
    places = {"EMPTY": str(tmp_path), "MODEL": str(directory)}
    with pytest.raises(SystemExit) as exit_:
        run(*[places.get(word, word) for word in words])
    shown = capsys.readouterr().err
    assert exit_.value.code == 2
    assert shown.startswith("fairseq-fill-mask: error: ") and message in shown and shown.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0 and "examples:" in capsys.readouterr().out
