"""The characters that pieces stand for, whatever the encoder and the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairseq.data.encoders import build_bpe
from fairseq.data.encoders.base import encode_with_offsets, locate_pieces
from fairseq.data.encoders.configs import (
    BertBPEConfig,
    GPT2BPEConfig,
    HuggingFaceByteLevelBPEConfig,
    HuggingFaceTokenizerConfig,
    SentencepieceConfig,
)
from fairseq.finetune.spans import pieces_of
from tests.token_sets import TINY_BPE

TEXTS = [
    "the man said that it was in time",
    "  two  spaces   before ",
    "line\nbreaks\r\n\n and\ttabs",
    "naïve café — “quotes” and a no-break\u00a0space",
    "emoji 😀 and 👩‍👩‍👧 family, flags 🇫🇷!",
    "東京タワー is in 東京.",
    "ﬁne ligature Å decomposed e\u0301",
    "",
    " ",
]


@pytest.fixture(scope="module", params=["gpt2", "hf_byte_bpe", "prefix_space", "hf_tokenizer", "sentencepiece", "none"])
def bpe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    files = [str(TINY_BPE / "encoder.json"), str(TINY_BPE / "vocab.bpe")]
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt2":
        return build_bpe(GPT2BPEConfig(_name="gpt2", gpt2_encoder_json=files[0], gpt2_vocab_bpe=files[1]))
    if request.param in ("hf_byte_bpe", "prefix_space"):
        prefix = request.param == "prefix_space"
        return build_bpe(
            HuggingFaceByteLevelBPEConfig(
                _name="hf_byte_bpe", bpe_vocab=files[0], bpe_merges=files[1], bpe_add_prefix_space=prefix
            )
        )
    if request.param == "hf_tokenizer":
        from tokenizers.implementations import ByteLevelBPETokenizer

        ByteLevelBPETokenizer(*files).save(str(folder / "tokenizer.json"))
        return build_bpe(
            HuggingFaceTokenizerConfig(_name="hf_tokenizer", hf_tokenizer_file=str(folder / "tokenizer.json"))
        )
    return sentencepiece(folder) if request.param == "sentencepiece" else None


def sentencepiece(folder: Path) -> Any:
    import sentencepiece as library

    lines = [
        "the man said that it was in time",
        "café naïve quotes and 東京 emoji",
        "two spaces before line breaks",
    ] * 20
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "m"), vocab_size=60, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return build_bpe(SentencepieceConfig(_name="sentencepiece", sentencepiece_model=str(folder / "m.model")))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_those_of_encode_and_cover_the_text(bpe: Any, text: str) -> None:
    symbols, spans = encode_with_offsets(bpe, text)
    line = "".join(" " if char in "\n\r" else char for char in text)
    assert symbols == (line.split() if bpe is None else bpe.encode(line).split())
    assert len(spans) == len(symbols)
    covered = set()
    for start, stop in spans:
        assert 0 <= start <= stop <= len(text)
        assert text[start:stop] == text[start:stop].strip()
        covered.update(range(start, stop))
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    visible = {place for place, char in enumerate(text) if not char.isspace()}
    assert covered >= visible  # every character belongs to a piece


@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip()])
def test_every_word_is_found_again(bpe: Any, text: str) -> None:
    """From a word's characters to its pieces and back: nothing is lost, and nothing but its neighbours' letters is won."""
    _, spans = encode_with_offsets(bpe, text)
    cursor = 0
    for word in text.split():
        start = text.index(word, cursor)
        cursor = start + len(word)
        found = pieces_of((start, cursor), spans)
        assert found is not None
        first, last = found
        assert spans[first][0] <= start and spans[last][1] >= cursor
        if word.isascii():  # a normalization may join other characters across a space
            assert text[spans[first][0] : spans[last][1]].strip() == word


def test_bytes_of_one_character_share_its_span() -> None:
    files = {"gpt2_encoder_json": str(TINY_BPE / "encoder.json"), "gpt2_vocab_bpe": str(TINY_BPE / "vocab.bpe")}
    symbols, spans = encode_with_offsets(build_bpe(GPT2BPEConfig(_name="gpt2", **files)), "a 😀b")
    emoji = [span for span in spans if span == (2, 3)]
    assert len(emoji) >= 2 and spans[-1] == (3, 4) and spans[0] == (0, 1)
    assert len(symbols) == len(spans)


def test_bert_word_pieces(tmp_path: Path) -> None:
    pieces = ["[UNK]", "the", "play", "##ing", "cafe", ",", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    bpe = build_bpe(BertBPEConfig(_name="bert", bpe_vocab_file=str(tmp_path / "vocab.txt")))
    text = "The  Playing, café 漢"
    symbols, spans = encode_with_offsets(bpe, text)
    assert symbols == ["the", "play", "##ing", ",", "cafe", "[UNK]"]
    assert [text[start:stop] for start, stop in spans] == ["The", "Play", "ing", ",", "café", "漢"]


class Upper:
    """A plugin's encoder: no offsets, and ``x`` is unknown to it."""

    def encode(self, text: str) -> str:
        return " ".join("<unk>" if word == "x" else word for word in text.replace("-", " - ").split())

    def decode(self, symbols: str) -> str:
        return symbols


def test_other_encoders_are_followed_by_their_pieces() -> None:
    text = "well-known  x and x"
    symbols, spans = encode_with_offsets(Upper(), text)
    assert symbols == ["well", "-", "known", "<unk>", "and", "<unk>"]
    assert [text[start:stop] for start, stop in spans] == ["well", "-", "known", "x", "and", "x"]


def test_pieces_that_are_nowhere_fill_the_gap() -> None:
    assert locate_pieces(["a", "?", "", "!", "b"], "a cd b") == [(0, 1), (1, 5), (1, 5), (1, 5), (5, 6)]
    assert locate_pieces(["?"], "") == [(0, 0)]
    assert locate_pieces([], "text") == []
