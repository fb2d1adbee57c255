"""The fast GPT-2 BPE against its reference implementation, its files, and the encoder script."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest
import torch

from fairseq.cli import bpe_encode
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders import gpt2_bpe
from fairseq.data.encoders.base import build_bpe
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe import get_encoder
from fairseq.data.masking import get_whole_word_mask
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from tests.common import ROOT
from tests.unit import gpt2_reference

FILES = ROOT / "tests/data/gpt2_tiny"
CONFIG = GPT2BPEConfig(
    _name="gpt2", gpt2_encoder_json=str(FILES / "encoder.json"), gpt2_vocab_bpe=str(FILES / "vocab.bpe")
)
NASTY = [
    "",
    " ",
    "   ",
    "a  b",
    "Hello world!  \n x's 12ab I'LL don't",
    "x\n\ny \t z\r\n",
    "\u00a0x \u00a0 y\u3000z \u2003\u2003w",
    "1,000.50 €5 ½ Ⅷ ٣",
    "e\u0301 naïve Straße 漢字かな ไทย",
    "👩🏽‍🚀 😀😀\u200b\ufeff",
    "control \x00\x01\x1b \x1c \x1f\x7f \x85 end",
    "' '' 's 'S 'll' don't've we'd're",
    "<mask> </s> <unk>",
    "tab\t tab \tthe the  the",
]


@pytest.fixture(scope="module")
def bpe():
    return build_bpe(CONFIG)


def reference(encoder, text):
    return gpt2_reference.encode(text, encoder.encoder, encoder.bpe_merges)


@pytest.mark.parametrize("text", NASTY)
def test_equals_the_reference_implementation(bpe, text):
    ids = bpe.bpe.encode(text)
    assert ids == reference(bpe.bpe, text)
    assert bpe.encode(text) == " ".join(map(str, ids))
    assert bpe.decode(bpe.encode(text)) == text


def test_equals_the_reference_implementation_on_random_text(bpe):
    rng = random.Random(1)
    alphabet = [
        *"ab sI'tlvd \t\n\r\x0b\x1c\x85\xa0\u2003\u30001²Ⅷ_-.,!\x00\x7fé漢😀",
        "  ",
        " the",
        "'re",
        " 's",
        "\u0301",
    ]
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(2000)]
    assert [bpe.bpe.encode(text) for text in texts] == [reference(bpe.bpe, text) for text in texts]
    ids, sizes = bpe.encode_lines(texts)
    assert ids.tolist() == [i for text in texts for i in bpe.bpe.encode(text)]
    assert sizes.tolist() == [len(bpe.bpe.encode(text)) for text in texts]


def test_full_tables_are_emptied(monkeypatch):
    monkeypatch.setattr(gpt2_bpe, "CACHE_ENTRIES", 3)
    monkeypatch.setattr(gpt2_bpe, "CACHE_LENGTH", 4)
    encoder = get_encoder(CONFIG.gpt2_encoder_json, CONFIG.gpt2_vocab_bpe)
    for text in NASTY:
        assert encoder.encode(text) == reference(encoder, text)
    assert len(encoder._later) <= 3


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a  b", ["a", " ", " b"]),
        ("x\n\ny", ["x", "\n", "\n", "y"]),
        (
            "Hello world!  \n x's 12ab I'LL don't",
            ["Hello", " world", "!", "  \n", " x", "'s", " 12", "ab", " I", "'", "LL", " don", "'t"],
        ),
        ("1,000.50 €5", ["1", ",", "000", ".", "50", " €", "5"]),
        ("\u00a0x", ["\u00a0", "x"]),
    ],
)
def test_pieces(text, pieces):
    assert gpt2_reference.pre_tokenize(text) == pieces


def test_byte_alphabet():
    alphabet = gpt2_bpe.bytes_to_unicode()
    assert len(set(alphabet.values())) == 256
    expected = {32: 0x120, 9: 0x109, 10: 0x10A, 127: 0x121, 160: 0x142, 173: 0x143, 65: 65, 255: 255, 0: 256}
    assert {byte: ord(alphabet[byte]) for byte in expected} == expected


def test_golden_ids(bpe):
    """What the complete files give for text that their first 400 merges suffice for."""
    assert bpe.encode("he said, it is not") == "258 531 11 340 318 407"
    assert bpe.encode(" in a") == "287 257" and bpe.encode("!a") == "0 64"


def test_decode(bpe):
    assert bpe.decode("<mask> " + bpe.encode(" a") + " <unk>") == "<mask> a<unk>"
    assert bpe.decode(str(bpe.bpe.encoder[chr(0xE9)])) == "\ufffd"  # half a character
    with pytest.raises(ValueError):
        bpe.decode("<s>")
    with pytest.raises(DataError, match="999999"):
        bpe.decode("999999")


def test_surrogates_and_missing_bytes(bpe, tmp_path):
    with pytest.raises(DataError, match="surrogate"):
        bpe.encode("a\ud800b")
    small = {piece: idx for piece, idx in bpe.bpe.encoder.items() if piece != "q"}
    encoder = gpt2_bpe.Encoder(small, [pair for pair in bpe.bpe.bpe_merges if "q" not in "".join(pair)])
    assert encoder.encode("a") == bpe.bpe.encode("a")
    with pytest.raises(DataError, match="0x71"):
        encoder.encode("a quick")


def test_malformed_files(tmp_path):
    merges = tmp_path / "vocab.bpe"
    for text, message in [("#version\na b\nc\nd e\n", "line 3"), ("#version\nqq zz\n", "do not belong together")]:
        merges.write_text(text)
        with pytest.raises(DataError, match=message):
            get_encoder(CONFIG.gpt2_encoder_json, str(merges))
    (tmp_path / "encoder.json").write_text("[1")
    with pytest.raises(DataError, match=r"encoder\.json is not JSON"):
        get_encoder(str(tmp_path / "encoder.json"), CONFIG.gpt2_vocab_bpe)
    (tmp_path / "encoder.json").write_text('{"a": "b"}')
    with pytest.raises(DataError, match="integer ids"):
        get_encoder(str(tmp_path / "encoder.json"), CONFIG.gpt2_vocab_bpe)
    with pytest.raises(DataNotFoundError, match="nowhere"):
        build_bpe(GPT2BPEConfig(_name="gpt2", gpt2_encoder_json="nowhere.json"))


def test_whole_word_mask(bpe):
    dictionary = Dictionary()
    for text in (" the", "the", " a", "b"):
        for symbol in bpe.encode(text).split():
            dictionary.add_symbol(symbol)
    for symbol in ("madeupword0000", "999999", "<mask>"):
        dictionary.add_symbol(symbol)
    mask = get_whole_word_mask(bpe, dictionary)
    assert mask.dtype == torch.uint8 and mask.tolist() == get_whole_word_mask(CONFIG, dictionary).tolist()
    by_symbol = dict(zip(dictionary.symbols, mask.tolist(), strict=True))
    assert by_symbol[bpe.encode(" the")] == 1 and by_symbol[bpe.encode("b")] == 0
    assert by_symbol["madeupword0000"] == by_symbol["999999"] == by_symbol["<s>"] == 1
    assert get_whole_word_mask(None, dictionary) is None


def run_script(monkeypatch, capsys, *flags, stdin=None):
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="ascii"))
    files = ("--encoder-json", CONFIG.gpt2_encoder_json, "--vocab-bpe", CONFIG.gpt2_vocab_bpe)
    bpe_encode.main(bpe_encode.get_parser().parse_args([*files, *map(str, flags)]))
    return capsys.readouterr()


@pytest.mark.parametrize("workers", [1, 3])
def test_script_on_files(monkeypatch, capsys, tmp_path, bpe, workers):
    monkeypatch.setattr(bpe_encode, "BATCH", 7)
    monkeypatch.setattr(bpe_encode, "REPORT", 40)
    left = [f" line {i} é  " if i % 5 else " \t" for i in range(100)]
    right = [f"other {i}" for i in range(90)]  # the shorter one ends it
    for name, lines in (("a", left), ("b", right)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    paths = ("--inputs", tmp_path / "a", tmp_path / "b", "--outputs", tmp_path / "ao", tmp_path / "bo")
    out = run_script(monkeypatch, capsys, *paths, "--workers", workers)
    assert "processed 80 lines" in out.err and "[num_filtered_EMPTY] filtered 18 lines" in out.err
    kept = [i for i in range(90) if i % 5]
    assert (tmp_path / "ao").read_text().splitlines() == [bpe.encode(left[i].strip()) for i in kept]
    assert (tmp_path / "bo").read_text().splitlines() == [bpe.encode(right[i]) for i in kept]
    run_script(monkeypatch, capsys, *paths, "--workers", workers, "--keep-empty")
    assert (tmp_path / "ao").read_text().splitlines() == [bpe.encode(line.strip()) for line in left[:90]]


def test_script_on_standard_streams_and_json(monkeypatch, capsys, bpe):
    lines = [json.dumps({"text": " a\nb "}), json.dumps({"text": ""}), ""]
    text = "".join(f"{line}\n" for line in lines)
    out = run_script(monkeypatch, capsys, "--jsonlines", "--workers", 1, "--keep-empty", stdin=text)
    assert out.out == bpe.encode(" a\nb ") + "\n\n\n"
    with pytest.raises(DataError, match="'text'"):
        run_script(monkeypatch, capsys, "--jsonlines", "--workers", 1, stdin="{}\n")
    with pytest.raises(ConfigError, match="equally many"):
        run_script(monkeypatch, capsys, "--inputs", "a", "b")


def test_carriage_returns_alone_are_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").write_bytes(b"the cat\rsat\r\n")
    out = run_script(monkeypatch, capsys, "--workers", 1, "--inputs", tmp_path / "in", "--outputs", tmp_path / "out")
    assert "in has 1 carriage returns" in out.err
    assert len((tmp_path / "out").read_text().splitlines()) == 2
