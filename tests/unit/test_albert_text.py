"""Text as ALBERT's tokenizer reads it, and where its pieces come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from fairseq.data.encoders.albert_text import original_spans, plain_text, split_commas
from fairseq.data.encoders.configs import SentencepieceConfig
from fairseq.data.encoders.libraries import SentencepieceBPE


def test_plain_text_knows_its_places() -> None:
    assert plain_text("Caf\u00e9 ``A''") == ('cafe "a"', [0, 1, 2, 3, 4, 5, 7, 8])
    text, places = plain_text("\ufb01\u00c5")
    assert text == "fia" and places == [0, 0, 1]
    assert original_spans([(0, 1), (1, 3), (3, 3)], places) == [(0, 1), (0, 2), (2, 2)]
    assert plain_text("") == ("", []) and original_spans([(0, 0)], []) == [(0, 0)]


def test_commas_after_digits() -> None:
    def encode(text: str) -> list[str]:
        return ["\u2581" + text[:1], *text[1:]]

    pieces, spans = split_commas(["\u2581a,", "\u258112,", "34,"], [(0, 2), (2, 6), (6, 9)], encode)
    assert pieces == ["\u2581a,", "\u25811", "2", ",", "3", "4", ","]
    assert spans == [(0, 2), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> SentencepieceBPE:
    folder: Path = tmp_path_factory.mktemp("albert")
    (folder / "text").write_text("".join(f"in 19{n}, the cat sat on {n}, mats\n" for n in range(10, 90)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "sp"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencepieceBPE(
        SentencepieceConfig(sentencepiece_model=str(folder / "sp.model"), sentencepiece_albert=True)
    )


def test_pieces_of_both_ways_and_their_spans(bpe: SentencepieceBPE) -> None:
    text = "In 1912, the C\u00e0t sat on 45, MATS"
    pieces, spans = bpe.encode_with_offsets(text)
    assert bpe.encode(text) == " ".join(pieces) == bpe.encode(text.lower().replace("\u00e0", "a"))
    assert bpe.decode(" ".join(pieces)) == "in 1912, the cat sat on 45, mats"
    assert not any(len(piece) > 1 and piece.endswith(",") for piece in pieces)
    for piece, (begin, end) in zip(pieces, spans, strict=True):
        assert plain_text(text[begin:end])[0].strip() == piece.strip("\u2581")
    ids, _ = bpe.encode_lines([text])
    assert [bpe.symbols[idx] for idx in ids] == pieces
