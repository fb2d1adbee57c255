"""What commands write: a file appears when it is complete, and no output takes the place of an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairseq.cli import bpe_encode, predict, preprocess
from fairseq.dataclass.parser import get_preprocessing_parser, parse_args_and_arch
from fairseq.errors import ConfigError, DataError
from fairseq.file_io import check_outputs, complete_file
from tests.unit.test_gpt2_bpe import CONFIG
from tests.unit.test_prediction import TEXTS, prediction_hub


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    kept, link = tmp_path / "kept.txt", tmp_path / "link.txt"
    kept.write_text("precious")
    kept.chmod(0o640)
    link.symlink_to(kept)
    with pytest.raises(RuntimeError), complete_file(link) as file:
        file.write("half")
        file.flush()
        assert kept.read_text() == "precious"
        raise RuntimeError
    assert kept.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["kept.txt", "link.txt"]
    with complete_file(link) as file:
        file.write("é\n")
    assert link.is_symlink() and kept.read_bytes() == b"\xc3\xa9\n" and kept.stat().st_mode & 0o777 == 0o640
    with complete_file("/dev/null") as file:
        file.write("gone")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("spelling", ["same", "dots", "symbolic", "hard"])
def test_no_output_is_an_input(tmp_path: Path, spelling: str) -> None:
    text = tmp_path / "text"
    text.write_text("precious")
    output = {"same": text, "dots": tmp_path / ".." / tmp_path.name / "text"}.get(spelling, tmp_path / "other")
    if spelling == "symbolic":
        output.symlink_to(text)
    elif spelling == "hard":
        os.link(text, output)
    with pytest.raises(ConfigError, match=r"the output .* is the input .*; choose another output file"):
        check_outputs([output], [text])
    check_outputs([tmp_path / "new", "-", "-", "/dev/null"], [text, "-", "/dev/null"])
    with pytest.raises(ConfigError, match="is the output .* already"):
        check_outputs([tmp_path / "new", tmp_path / "." / "new"], [])


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts to predict, with an old output beside them."""
    monkeypatch.setattr(predict, "load_hub", lambda args, beside=None: prediction_hub())
    (tmp_path / "old.tsv").write_text("precious")
    (tmp_path / "texts").write_text("".join(text + "\n" for text in TEXTS))
    return tmp_path / "texts"


def predictions(*words: object) -> None:
    predict.main(predict.get_parser().parse_args(["--path", "x", "--no-progress-bar", *map(str, words)]))


def test_predictions_replace_the_old_ones_at_once(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = texts.with_name("old.tsv")
    predictions("--input", texts, "--output", old)
    assert len(old.read_text().splitlines()) == 1 + len(TEXTS)


def test_an_empty_line_costs_nothing(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = texts.with_name("old.tsv")
    texts.write_text(texts.read_text() + "\n")
    for output in (old, "-"):
        with pytest.raises(DataError, match=f"texts, line {len(TEXTS) + 1}: the text is empty"):
            predictions("--input", texts, "--output", output, "--batch-size", 1)
    assert old.read_text() == "precious" and capsys.readouterr().out == ""
    assert sorted(os.listdir(texts.parent)) == ["old.tsv", "texts"]


def test_predictions_do_not_replace_their_texts(texts: Path) -> None:
    before = texts.read_text()
    with pytest.raises(ConfigError, match="is the input"):
        predictions("--input", texts, "--output", texts)
    assert texts.read_text() == before


def test_ids_replace_the_old_ones_at_once(tmp_path: Path) -> None:
    text, ids = tmp_path / "text", tmp_path / "ids"
    ids.write_text("precious")
    files = ["--encoder-json", CONFIG.gpt2_encoder_json, "--vocab-bpe", CONFIG.gpt2_vocab_bpe, "--workers", "1"]

    def encode(output: Path) -> None:
        words = [*files, "--inputs", str(text), "--outputs", str(output)]
        bpe_encode.main(bpe_encode.get_parser().parse_args(words))

    text.write_bytes(b"fine\n" * 1000 + b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        encode(ids)
    assert ids.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["ids", "text"]
    with pytest.raises(ConfigError, match="is the input"):
        encode(text)
    assert len(text.read_bytes()) == 5002


def test_binarized_data_do_not_replace_the_text(tmp_path: Path) -> None:
    text = tmp_path / "train.bin"
    text.write_text("a b\n" * 10)
    words = ["--only-source", "--trainpref", str(text), "--destdir", str(tmp_path)]
    with pytest.raises(ConfigError, match="is the input"):
        preprocess.main(parse_args_and_arch(get_preprocessing_parser(), words))
    assert text.read_text() == "a b\n" * 10 and not (tmp_path / "dict.txt").exists()
