"""A BPE that does not fit the dictionary is told of wherever both are at hand: by every command, and in Python."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from fairseq.cli import fill_mask, preprocess, train
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import build_bpe
from fairseq.data.encoders.configs import BertBPEConfig, GPT2BPEConfig
from fairseq.data.encoders.fit import Unknowns, encoder_misfit
from fairseq.models.roberta import RobertaModel
from tests.common import tiny_dictionary
from tests.downstream import GPT2, TINY, dictionary_of_ids, write
from tests.runs import TINY_FLAGS

SENTENCE = "the dictionary does not fit the BPE: only 0 of its 40 symbols"
FILES = {"gpt2_encoder_json": str(TINY / "encoder.json"), "gpt2_vocab_bpe": str(TINY / "vocab.bpe")}


def gpt2() -> object:
    settings = GPT2BPEConfig(**FILES)
    settings._name = "gpt2"
    return build_bpe(settings)


def test_vocabularies(tmp_path: Path) -> None:
    fitting = Dictionary.load(dictionary_of_ids(tmp_path))
    fitting.add_symbol("<mask>")
    fitting.finalize(padding_factor=8)
    assert encoder_misfit(gpt2(), fitting) is None and encoder_misfit(None, tiny_dictionary()) is None
    assert (encoder_misfit(gpt2(), tiny_dictionary()) or "").startswith(SENTENCE)
    few = Dictionary()  # counted from a small text
    few.add_symbol("17")
    assert encoder_misfit(gpt2(), few) is None
    settings = BertBPEConfig(bpe_vocab_file=str(write(tmp_path / "vocab.txt", "[UNK]", "[CLS]", "[SEP]", "the", "##s")))
    settings._name = "bert"
    assert encoder_misfit(build_bpe(settings), few) is not None


def test_counting_texts() -> None:
    counted = Unknowns()
    assert counted.add(5, 5) is None and counted.add(2, 2) is None  # too little to judge
    assert "9 of 9 pieces of the texts are not in the dictionary" in (counted.add(2, 2) or "")
    assert counted.add(50, 50) is None  # once is enough
    assert Unknowns().add(100, 80) is None


def test_every_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Preprocessing, training (which only stores the BPE), filling masks, Python; predict and glue refuse by their texts."""
    monkeypatch.chdir(tmp_path)

    def told(times: int = 1) -> bool:
        found = [record.getMessage() for record in caplog.records if SENTENCE in record.getMessage()]
        caplog.clear()
        return len(found) == times

    caplog.set_level(logging.WARNING)
    tiny_dictionary().save("dict.txt")
    write(tmp_path / "raw", "The cat sat on the mat.", "It rains.")
    write(tmp_path / "text", *["w01 w02 w03 w04 w05 w06 w07"] * 20)
    given = ["--only-source", "--srcdict", "dict.txt"]
    preprocess.cli_main([*given, "--validpref", "raw", "--destdir", "raw-bin", *map(str, GPT2)])
    assert told()
    preprocess.cli_main([*given, "--trainpref", "text", "--validpref", "text", "--destdir", "data-bin"])
    assert told(0)
    train.cli_main(argv=["data-bin", *TINY_FLAGS, "--max-update", "1", *map(str, GPT2)])
    assert told()
    fill_mask.main(fill_mask.get_parser().parse_args(["--path", "checkpoints", "--cpu", "The <mask> sat."]))
    assert told()
    RobertaModel.from_pretrained("checkpoints", "checkpoint_last.pt", "data-bin", bpe="gpt2")
    assert told()
    hub = RobertaModel.from_pretrained("checkpoints", "checkpoint_last.pt", "data-bin", bpe=None)
    hub.encode("w01 w02 w03 w04 w05 w06 w07 w08 w09 w10")
    assert told(0) and not caplog.records
    hub.encode("the cat sat on the mat and it rained in may " * 9)
    assert "pieces of the texts are not in the dictionary" in caplog.text
    shutil.rmtree("checkpoints")
    caplog.clear()
    missing = [str(flag).replace("vocab.bpe", "missing.bpe") for flag in GPT2]
    train.cli_main(argv=["data-bin", *TINY_FLAGS, "--max-update", "1", *missing])
    assert "the BPE that is stored with the model: file not found" in caplog.text and "missing.bpe" in caplog.text
