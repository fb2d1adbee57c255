"""What commands write: a file appears when it is complete, and no output takes the place of an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairseq.checkpoint.store import CheckpointStore
from fairseq.cli import bpe_encode, predict, preprocess, preprocess_task
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.dataclass.parser import get_preprocessing_parser, parse_args_and_arch
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.file_io import check_outputs, complete_file, copy_file
from fairseq.glue.files import remove_made
from fairseq.interop.convert import convert_checkpoint
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
    copy_file(kept, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"\xc3\xa9\n"
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


def test_predictions_on_a_full_disk(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="cannot write /dev/full: No space left on device"):
        predictions("--input", texts, "--output", "/dev/full")
    assert os.path.exists("/dev/full") and capsys.readouterr().out == ""


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


def test_predictions_do_not_replace_data_or_model(texts: Path) -> None:
    home = texts.parent
    for name in ("data/input0/dict.txt", "data/label/dict.txt", "run/checkpoint_best.pt"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("precious")
        words = ["--path", home / "run", "--output", home / name, "--data", home / "data"]
        with pytest.raises(ConfigError, match=f"is the input .*{name}"):
            predictions("--input", texts, *words)
        assert (home / name).read_text() == "precious"
    predictions("--input", texts, "--path", home / "run", "--output", home / "run/answers.tsv")
    assert (home / "run/answers.tsv").is_file()


def test_a_model_is_not_converted_into_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("precious")
    for source in (tmp_path, tmp_path / "model.pt"):
        with pytest.raises(ConfigError, match="is the folder of the input"):
            convert_checkpoint("fairseq", "fairseq", source, tmp_path)
    assert (tmp_path / "model.pt").read_text() == "precious"


def test_only_what_the_same_command_made_is_deleted(tmp_path: Path) -> None:
    words = ["--task", "plain", "--data-dir", str(tmp_path / "raw"), "--dest", str(tmp_path / "out"), "--overwrite"]
    args = preprocess_task.get_parser().parse_args([*words, "--srcdict", str(tmp_path / "dict.txt")])
    for split in ("train", "dev"):
        for name, lines in ((f"{split}.raw.input0", "a b\nb a\n"), (f"{split}.label", "good\nbad\n")):
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / "raw" / name).write_text(lines)
    (tmp_path / "dict.txt").write_text("a 1\nb 1\n")
    for _ in range(2):
        preprocess_task.main(args)
    (tmp_path / "out/label/my notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"--overwrite would delete .*my notes\.txt, which .* did not make"):
        preprocess_task.main(args)
    assert (tmp_path / "out/label/my notes.txt").read_text() == "precious"
    (tmp_path / "raw/train.label").write_text("good\n<unk>\n")
    (tmp_path / "out/label/my notes.txt").unlink()
    with pytest.raises(DataError, match=r"train\.label, line 2: the label '<unk>' is one of the special symbols"):
        preprocess_task.main(args)

    mark = "data.json"
    for name in ("mine", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine/train.tsv").write_text("precious")
    with pytest.raises(ConfigError, match="mine was not made by fairseq-glue"):
        remove_made(tmp_path / "mine", mark)
    assert (tmp_path / "mine/train.tsv").exists()
    (tmp_path / "mine/data.json").write_text("{}")
    for name in ("mine", "empty", "nowhere"):
        remove_made(tmp_path / name, mark)
        assert not (tmp_path / name).exists()


def test_words_labelled_with_special_symbols(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a X\nb <pad>\n\n")
    (tmp_path / "dict.txt").write_text("a 1\nb 1\n")
    words = ["--task", "conll", "--data-dir", str(tmp_path), "--dest", str(tmp_path / "out")]
    args = preprocess_task.get_parser().parse_args([*words, "--srcdict", str(tmp_path / "dict.txt")])
    with pytest.raises(DataError, match=r"train\.txt, line 2: the label '<pad>' is one of the special symbols"):
        preprocess_task.main(args)


def test_a_run_that_saves_nothing_needs_no_directory(tmp_path: Path) -> None:
    cfg = CheckpointConfig()
    (tmp_path / "file").write_text("")
    cfg.save_dir = str(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot write to the checkpoint directory"):
        CheckpointStore(cfg).verify_directory()
    cfg.no_save = True
    CheckpointStore(cfg).verify_directory()
    assert CheckpointStore(cfg).save({}, 1, 1, True, 1.0) is None
