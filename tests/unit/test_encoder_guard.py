"""Texts and files on which the libraries of subword encoders hang, abort or panic: each is one sentence."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from fairseq.data.encoders import build_bpe, guard
from fairseq.data.encoders.base import encode_with_offsets, symbol_source
from fairseq.data.encoders.configs import (
    BertBPEConfig,
    GPT2BPEConfig,
    HuggingFaceByteLevelBPEConfig,
    HuggingFaceTokenizerConfig,
    SentencepieceConfig,
)
from fairseq.errors import DataError
from tests.common import ROOT

FILES = ROOT / "tests/data/gpt2_tiny"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "man", "##ly"]


def gpt2(vocab: str | Path = FILES / "encoder.json", merges: str | Path = FILES / "vocab.bpe") -> Any:
    return build_bpe(GPT2BPEConfig(_name="gpt2", gpt2_encoder_json=str(vocab), gpt2_vocab_bpe=str(merges)))


def byte_bpe(vocab: str | Path = FILES / "encoder.json", merges: str | Path = FILES / "vocab.bpe") -> Any:
    return build_bpe(
        HuggingFaceByteLevelBPEConfig(
            _name="hf_byte_bpe", bpe_vocab=str(vocab), bpe_merges=str(merges), bpe_add_prefix_space=True
        )
    )


def bert(folder: Path, pieces: list[str] = PIECES) -> Any:
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return build_bpe(BertBPEConfig(_name="bert", bpe_vocab_file=str(folder / "vocab.txt")))


def sentence_pieces(folder: Path) -> Any:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the man said that it is in and on it"] * 50),
        model_prefix=str(folder / "m"),
        vocab_size=16,
        minloglevel=2,
    )
    return build_bpe(SentencepieceConfig(_name="sentencepiece", sentencepiece_model=str(folder / "m.model")))


def tokenizer_json(folder: Path, **changes: Any) -> Any:
    """The tokenizer.json of a byte-level BPE with other sections."""
    path = folder / "tokenizer.json"
    ByteLevelBPETokenizer(str(FILES / "encoder.json"), str(FILES / "vocab.bpe")).save(str(path))
    content = json.loads(path.read_text())
    for section, value in changes.items():
        content[section] = {**content[section], **value} if section == "model" else value
    path.write_text(json.dumps(content))
    return build_bpe(HuggingFaceTokenizerConfig(_name="hf_tokenizer", hf_tokenizer_file=str(path)))


ENCODERS: dict[str, Callable[[Path], Any]] = {
    "gpt2": lambda folder: gpt2(),
    "hf_byte_bpe": lambda folder: byte_bpe(),
    "bert": bert,
    "sentencepiece": sentence_pieces,
    "hf_tokenizer": tokenizer_json,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_long_texts(name: str, tmp_path: Path) -> None:
    bpe = ENCODERS[name](tmp_path)
    uses: list[Callable[[str], Any]] = [
        bpe.encode,
        lambda text: encode_with_offsets(bpe, text),
        lambda text: symbol_source(bpe).encode_lines(["the man", text]),
    ]
    for use in uses:
        with pytest.raises(DataError, match="2,000,000 characters without a blank.* at most 1,048,576 .*into lines"):
            use("the man " + "a" * 2_000_000)
        with pytest.raises(DataError, match="blanks one after the other, but at most 1,048,576"):
            use("the" + " " * 2_000_000 + "man")
        with pytest.raises(DataError, match="unpaired surrogate"):
            use("the \ud800 man")
    text = "the man " * 600_000
    if name == "gpt2":
        ids, (size,) = bpe.encode_lines([text])
        assert size == len(ids) == 2 * 600_000 + 2 and np.array_equal(ids[2:-2], np.tile(ids[2:4], 599_999))
    else:
        with pytest.raises(DataError, match="4,800,000 characters, but at most 4,194,304 can be encoded at once"):
            bpe.encode(text)


def test_what_is_just_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LONGEST_RUN", 8)
    monkeypatch.setattr(guard, "LONGEST_TEXT", 20)
    bpe = byte_bpe()
    assert bpe.encode("12345678 2345678") and bpe.encode("a" + " " * 8 + "b")
    for text in ("123456789", "a" + " " * 9 + "b", "1234567 1234567 1234567"):
        with pytest.raises(DataError, match="at most"):
            bpe.encode(text)


def vocabulary(folder: Path, **changes: Any) -> Path:
    content = json.loads((FILES / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps({**content, **changes}))
    return folder / "encoder.json"


def written(folder: Path, text: str) -> Path:
    (folder / "encoder.json").write_text(text)
    return folder / "encoder.json"


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gpt2 negative": (lambda at: gpt2(vocabulary(at, zz=-5)), r"encoder\.json: the id -5 is out of range; ids of"),
    "gpt2 huge": (lambda at: gpt2(vocabulary(at, zz=10**8)), "the id 100000000 is out of range; .* 0 to 4,194,303"),
    "gpt2 beyond 64 bits": (lambda at: gpt2(vocabulary(at, zz=2**70)), "out of range"),
    "gpt2 empty": (lambda at: gpt2(written(at, "{}")), r"encoder\.json: the vocabulary is empty"),
    "gpt2 nested": (lambda at: gpt2(written(at, "[" * 100_000)), r"encoder\.json is not JSON: it is nested too deep"),
    "gpt2 surrogate": (lambda at: gpt2(written(at, '{"\\ud800": 1}')), "half of a surrogate pair"),
    "gpt2 without merges": (
        lambda at: gpt2(merges=written(at, "#version: 0.2\n")),
        "do not belong together: the merges make only 0 of ",
    ),
    "gpt2 folder": (lambda at: gpt2(at), "cannot read .*: Is a directory"),
    "bytes empty": (
        lambda at: byte_bpe(written(at, "{}"), written(at / "..", "#version: 0.2\n")),
        "the vocabulary is empty",
    ),
    "bytes negative": (
        lambda at: byte_bpe(vocabulary(at, zz=-5)),
        r"encoder\.json and .*vocab\.bpe are not byte-level",
    ),
    "bert no unknown": (lambda at: bert(at, ["[CLS]", "[SEP]", "the"]), r"vocab\.txt has no line \[UNK\]"),
    "bert empty": (lambda at: bert(at, []), r"vocab\.txt is not a word-piece vocabulary"),
    "json negative": (lambda at: tokenizer_json(at, model={"vocab": {"a": -1}, "merges": []}), r"tokenizer\.json"),
    "json empty": (lambda at: tokenizer_json(at, model={"vocab": {}, "merges": []}), "the vocabulary is empty"),
    "json expression": (lambda at: tokenizer_json(at, pre_tokenizer=split_by("(a+)+$")), "not a valid tokenizer"),
    "json table": (
        lambda at: tokenizer_json(at, normalizer=charsmap(b"\x08\0\0\0abcdefgh")),
        r"tokenizer\.json is not a valid tokenizer\.json: ",
    ),
    "json table size": (lambda at: tokenizer_json(at, normalizer=charsmap(b"\xff" * 200)), "charsmap is damaged"),
    "json table text": (
        lambda at: tokenizer_json(at, normalizer={"type": "Precompiled", "precompiled_charsmap": "!"}),
        "charsmap is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build, sentence = DAMAGED[name]
    (tmp_path / "files").mkdir()
    with pytest.raises(DataError, match=sentence):
        build(tmp_path / "files")
    assert capfd.readouterr().err == ""  # a library in Rust prints its panics


def test_what_only_a_text_shows(tmp_path: Path) -> None:
    """Files that some texts can be encoded with: the file is named when one cannot."""
    model = {"type": "WordPiece", "vocab": {"the": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    bpe = tokenizer_json(
        tmp_path, model=model | {"max_input_chars_per_word": 100}, pre_tokenizer={"type": "Whitespace"}
    )
    assert bpe.encode("the the") == "0 0"
    for use in (bpe.encode, lambda text: bpe.encode_lines([text])):
        with pytest.raises(DataError, match=r"tokenizer\.json cannot encode a text: .*\[UNK\]"):
            use("the man")
    bpe = tokenizer_json(tmp_path, pre_tokenizer=split_by("(b+)+$"))
    with pytest.raises(DataError, match=r"tokenizer\.json cannot encode a text: "):
        bpe.encode("b" * 60 + "c")
