"""What travels in the files of encoders and dictionaries and would lose or change text is switched off or refused."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import build_bpe, symbol_source
from fairseq.data.encoders.gpt2_bpe import bytes_to_unicode, get_encoder
from fairseq.data.text import read_blocks
from fairseq.errors import DataError
from fairseq.interop.vocabulary import vocabulary_lines

MARK = "\ufeff"
TEXT = "ab ba " * 400


def encoders(**settings: Any) -> Any:
    return build_bpe(Namespace(**settings))


def both_ways(bpe: Any, text: str) -> list[str]:
    """The symbols of ``text``, which the encoder's two interfaces give alike."""
    source = symbol_source(bpe)
    ids, sizes = source.encode_lines([text])
    symbols = [source.symbols[idx] for idx in ids]
    assert symbols == bpe.encode(text).split() and sizes.tolist() == [len(symbols)]
    return symbols


def byte_level(vocab: dict[str, int], **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], **model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def saved(tokenizer: Tokenizer, path: Path, prefix: str = "") -> str:
    path.write_text(prefix + tokenizer.to_str(), encoding="utf-8")
    return str(path)


def all_bytes() -> dict[str, int]:
    return {char: idx for idx, char in enumerate(bytes_to_unicode().values())}


def test_truncation_padding_and_dropout_of_a_tokenizer_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={**all_bytes(), "ab": 256}, merges=[("a", "b")], dropout=0.5))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    bpe = encoders(bpe="hf_tokenizer", hf_tokenizer_file=saved(tokenizer, tmp_path / "tokenizer.json"))
    symbols = both_ways(bpe, TEXT)
    assert len(symbols) == 400 * 5  # "ab", " ", "b", "a", " "
    assert symbols.count("256") == 400


@pytest.mark.parametrize("kind", ["byte level", "in a sequence", "characters"])
def test_a_vocabulary_that_lacks_a_byte(tmp_path: Path, kind: str) -> None:
    vocab = {"a": 0, "b": 1, "\u0120": 2, " ": 3}
    tokenizer = byte_level(vocab)
    if kind == "in a sequence":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer])
    elif kind == "characters":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.NFC()
    bpe = encoders(bpe="hf_tokenizer", hf_tokenizer_file=saved(tokenizer, tmp_path / "tokenizer.json"))
    assert len(both_ways(bpe, "ab a")) == 4
    for encode in (bpe.encode, lambda text: bpe.encode_lines(["ab", text]), bpe.encode_with_offsets):
        with pytest.raises(DataError, match=r"tokenizer\.json has no piece .* 'abc'.* lost"):
            encode("abc")


def test_an_unknown_token_is_no_loss(tmp_path: Path) -> None:
    tokenizer = byte_level({"a": 0, "?": 1}, unk_token="?")
    bpe = encoders(bpe="hf_tokenizer", hf_tokenizer_file=saved(tokenizer, tmp_path / "tokenizer.json"))
    assert both_ways(bpe, "aXa") == ["0", "1", "0"]


@pytest.mark.parametrize("prefix", [False, True])
def test_vocab_and_merges_that_lack_a_byte(tmp_path: Path, prefix: bool) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "\u0120": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    files = {"bpe_vocab": str(tmp_path / "vocab.json"), "bpe_merges": str(tmp_path / "merges.txt")}
    bpe = encoders(bpe="hf_byte_bpe", bpe_add_prefix_space=prefix, **files)
    assert both_ways(bpe, "ab a") == ["3"] * prefix + ["2", "3", "0"]
    with pytest.raises(DataError, match=r"vocab\.json and .*merges\.txt has no piece"):
        bpe.encode_lines(["a", "\u00e4"])


@pytest.mark.parametrize(("mark", "end"), [("", "\r\n"), (MARK, "\n"), (MARK, "\r\n")])
def test_marks_and_line_ends_of_windows(tmp_path: Path, mark: str, end: str) -> None:
    """Files that an editor has saved mean what they meant before."""

    def write(name: str, *lines: str) -> str:
        path = tmp_path / name
        path.write_bytes((mark + "".join(line + end for line in lines)).encode())
        return str(path)

    vocab = write("vocab.json", json.dumps({**all_bytes(), "ab": 256}))
    merges = write("merges.txt", "#version: 0.2", "a b")
    assert get_encoder(vocab, merges).encode("ab") == [256]
    gpt2 = encoders(bpe="gpt2", gpt2_encoder_json=vocab, gpt2_vocab_bpe=merges)
    bytes_ = encoders(bpe="hf_byte_bpe", bpe_vocab=vocab, bpe_merges=merges)
    assert both_ways(gpt2, "ab") == both_ways(bytes_, "ab") == ["256"]
    pieces = write("vocab.txt", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c")
    bert = encoders(bpe="bert", bpe_vocab_file=pieces)
    assert bert.symbols[0] == vocabulary_lines(Path(pieces))[0] == "[PAD]" and both_ways(bert, "abc") == ["ab", "##c"]
    whole = saved(byte_level(all_bytes()), tmp_path / "tokenizer.json", mark)
    assert len(both_ways(encoders(bpe="hf_tokenizer", hf_tokenizer_file=whole), "abc")) == 3
    dictionary = Dictionary.load(write("dict.txt", "the 12", "cat 3"))
    assert dictionary.symbols[4:] == ["the", "cat"] and dictionary.count[4:] == [12, 3]
    assert list(read_blocks(write("text.txt", "the cat", "sat"))) == [["the cat", "sat"]]


def test_a_mark_that_is_a_symbol_stays(tmp_path: Path) -> None:
    dictionary = Dictionary()
    dictionary.add_symbol(MARK, 5)
    dictionary.add_symbol("the", 2)
    dictionary.save(tmp_path / "dict.txt")
    assert Dictionary.load(tmp_path / "dict.txt") == dictionary
