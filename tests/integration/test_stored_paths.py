"""What a checkpoint names: files are found wherever it was moved to, addresses are not fetched, plugins are not imported."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.checkpoint.reader import read
from fairseq.cli import fill_mask, preprocess, train, validate
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.glue.pretrained import read_pretrained
from fairseq.interop.convert import convert_checkpoint
from fairseq.models.roberta import RobertaModel
from tests.downstream import TINY, dictionary_of_ids, write
from tests.runs import TINY_FLAGS

KEYS = ("gpt2_encoder_json", "gpt2_vocab_bpe")
LINES = ["The cat sat on the mat.", "A man rode the horse home.", "She reads a long book.", "It rains in May."] * 4
ADDRESS = "http://198.51.100.1/encoder.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run/files`` (the BPE), ``run/data-bin`` and ``run/checkpoints``, trained in ``run`` with relative paths."""
    place = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(TINY, place / "files")
    dictionary_of_ids(place)
    write(place / "text", *LINES)
    flags = ["--bpe", "gpt2", "--gpt2-encoder-json", "files/encoder.json", "--gpt2-vocab-bpe", "files/vocab.bpe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        words = ["--only-source", "--srcdict", "dict.txt", "--trainpref", "text", "--validpref", "text"]
        preprocess.cli_main([*words, "--destdir", "data-bin", *flags])
        train.cli_main(argv=["data-bin", *TINY_FLAGS, "--max-update", "1", *flags])
    return place


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Path:
    """A copy of ``run`` somewhere else; the original is not there while a test runs."""
    shutil.copytree(trained, tmp_path / "moved")
    trained.rename(trained.with_name("away"))
    yield tmp_path / "moved"
    trained.with_name("away").rename(trained)


def rewrite(path: Path, **bpe: str) -> Path:
    """The checkpoint with other settings of its BPE, and relative data, as older versions stored it."""
    state = torch.load(path, weights_only=False)
    state["cfg"]["bpe"].update(bpe)
    state["cfg"]["task"]["data"] = "data-bin"
    torch.save(state, path)
    return path


def files_of(path: Path) -> list[str]:
    bpe = read(path)["cfg"].bpe
    return [bpe[key] for key in KEYS]


def test_paths_are_stored_absolute(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    cfg = torch.load(trained / "checkpoints/checkpoint_last.pt", weights_only=False)["cfg"]
    assert cfg["task"]["data"] == str(trained / "data-bin")
    assert cfg["bpe"] == {
        "_name": "gpt2",
        "gpt2_encoder_json": str(trained / "files/encoder.json"),
        "gpt2_vocab_bpe": str(trained / "files/vocab.bpe"),
    }
    hub = RobertaModel.from_hub(str(trained / "checkpoints"), "checkpoint_last.pt", None)
    assert hub.decode(hub.encode(LINES[0])) == LINES[0]


@pytest.mark.parametrize("place", ["above", "beside", "data"])
@pytest.mark.parametrize("stored", ["files/encoder.json", "/nowhere/files/encoder.json"])
def test_files_are_found_where_they_are_now(moved: Path, place: str, stored: str) -> None:
    """Relative and absolute paths of a training elsewhere; every command reads the configuration this way."""
    checkpoint = rewrite(
        moved / "checkpoints/checkpoint_last.pt",
        gpt2_encoder_json=stored,
        gpt2_vocab_bpe=stored.replace("encoder.json", "vocab.bpe"),
    )
    home = moved / "files"
    if place != "above" or stored.startswith("/"):
        home = moved / ("data-bin" if place == "data" else "checkpoints")
        for file in (moved / "files").iterdir():
            shutil.move(file, home / file.name)
    expected = [str(home / "encoder.json"), str(home / "vocab.bpe")]
    assert files_of(checkpoint) == expected
    assert read(checkpoint)["cfg"].task.data == str(moved / "data-bin")
    hub = RobertaModel.from_hub(str(moved / "checkpoints"), "checkpoint_last.pt", None)
    assert hub.decode(hub.encode(LINES[0])) == LINES[0]
    found = read_pretrained(checkpoint, None, None, {})
    assert [found.bpe[key] for key in KEYS] == expected and found.dictionary == moved / "data-bin/dict.txt"
    fill_mask.main(fill_mask.get_parser().parse_args(["--path", str(checkpoint), "--cpu", "The <mask> sat."]))


def test_a_project_that_was_moved(moved: Path) -> None:
    """The absolute paths of another place: what follows there is here."""
    checkpoint = moved / "checkpoints/checkpoint_last.pt"
    assert files_of(checkpoint) == [str(moved / "files/encoder.json"), str(moved / "files/vocab.bpe")]
    assert read(checkpoint)["cfg"].task.data == str(moved / "data-bin")
    assert files_of(Path(shutil.copy(checkpoint, moved.parent))) != files_of(checkpoint)


def test_a_file_that_is_nowhere(moved: Path) -> None:
    shutil.rmtree(moved / "files")
    rewrite(
        moved / "checkpoints/checkpoint_last.pt", gpt2_vocab_bpe="vocab.bpe", gpt2_encoder_json="files/encoder.json"
    )
    with pytest.raises(DataNotFoundError) as caught:
        RobertaModel.from_hub(str(moved / "checkpoints"), "checkpoint_last.pt", None)
    for word in ("files/encoder.json", "setting bpe.gpt2_encoder_json", "--gpt2-encoder-json"):
        assert word in str(caught.value)


def test_what_is_given_is_not_looked_for(moved: Path) -> None:
    """A mistake in a path that the user typed is told, though there is a file of that name beside the checkpoint."""
    shutil.copy(moved / "files/encoder.json", moved / "checkpoints")
    with pytest.raises(DataNotFoundError, match="wrong/encoder.json"):
        RobertaModel.from_hub(
            str(moved / "checkpoints"), "checkpoint_last.pt", None, gpt2_encoder_json="wrong/encoder.json"
        )


def test_addresses_in_a_checkpoint_are_not_fetched(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    checkpoint = rewrite(tmp_path / "checkpoints/checkpoint_last.pt", gpt2_encoder_json=ADDRESS)
    place = (str(tmp_path / "checkpoints"), "checkpoint_last.pt", str(trained / "data-bin"))
    for attempt in (
        lambda: RobertaModel.from_hub(*place),
        lambda: RobertaModel.from_pretrained(*place),
        lambda: fill_mask.main(
            fill_mask.get_parser().parse_args(["--path", str(checkpoint), "--data", place[2], "--cpu", "The <mask>"])
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        for word in (ADDRESS, "bpe.gpt2_encoder_json", "not downloaded", "--gpt2-encoder-json"):
            assert word in str(caught.value)
    hub = RobertaModel.from_hub(*place, gpt2_encoder_json=str(TINY / "encoder.json"))  # as the sentence says
    assert hub.decode(hub.encode(LINES[0])) == LINES[0]
    assert RobertaModel.from_hub(*place, bpe=None).bpe is None
    shutil.copy(TINY / "encoder.json", tmp_path / "checkpoints")  # the file that stands beside it serves, too
    hub = RobertaModel.from_hub(*place)
    assert hub.decode(hub.encode(LINES[0])) == LINES[0]


def test_the_published_addresses_stay(tmp_path: Path) -> None:
    from fairseq.checkpoint.stored_paths import located
    from fairseq.data.encoders.configs import GPT2_VOCAB_BPE

    settings = {"_name": "gpt2", "gpt2_vocab_bpe": GPT2_VOCAB_BPE, "gpt2_encoder_json": GPT2_VOCAB_BPE}
    found = located(settings, "bpe", tmp_path / "model.pt")
    assert found["gpt2_vocab_bpe"] == GPT2_VOCAB_BPE and found["gpt2_encoder_json"] == f"not-fetched:{GPT2_VOCAB_BPE}"
    odd = {"_name": 5, "a": "x" * 5000 + ".json", "b": "a\0.json", "c": None, "d": "?", "e": ".json", "f": "/.x"}
    assert located(odd, "bpe", tmp_path / "model.pt", ["a\0", "y" * 5000]) == odd
    plugin = located({"_name": "of_a_plugin", "table": "https://x/y"}, "bpe", tmp_path / "model.pt")
    assert plugin["table"] == "not-fetched:https://x/y"


def test_a_plugin_that_a_checkpoint_names_is_not_imported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the user types is code: ``--user-dir``, a YAML file, a recipe."""
    write(tmp_path / "harm" / "__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    checkpoint = tmp_path / "checkpoints/checkpoint_last.pt"
    state = torch.load(checkpoint, weights_only=False)
    state["cfg"]["common"]["user_dir"] = str(tmp_path / "harm")
    state["cfg"]["user_dir"] = state["cfg"]["task"]["user_dir"] = state["cfg"]["model"]["user_dir"] = str(
        tmp_path / "harm"
    )
    torch.save(state, checkpoint)
    monkeypatch.chdir(tmp_path)
    data = str(trained / "data-bin")
    read(checkpoint)
    RobertaModel.from_hub("checkpoints", "checkpoint_last.pt", data)
    RobertaModel.from_pretrained("checkpoints", "checkpoint_last.pt", data)
    fill_mask.main(fill_mask.get_parser().parse_args(["--path", "checkpoints", "--data", data, "--cpu", "The <mask>"]))
    validate.cli_main([data, "--path", str(checkpoint), "--task", "masked_lm", "--batch-size", "4", "--cpu"])
    train.cli_main(
        argv=[data, *TINY_FLAGS, "--max-update", "1", "--finetune-from-model", str(checkpoint), "--save-dir", "new"]
    )
    train.cli_main(
        argv=[data, *TINY_FLAGS, "--max-update", "2", "--restore-file", str(checkpoint), "--save-dir", "more"]
    )
    read_pretrained(checkpoint, None, None, {})
    convert_checkpoint("fairseq", "fairseq-upstream", checkpoint, tmp_path / "out.pt")
    assert not (tmp_path / "ran").exists()
