"""The other subword encoders, the builders and the download cache."""

from __future__ import annotations

import http.server
import json
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from fairseq.data import cached_path as cache
from fairseq.data.encoders import build_bpe, build_tokenizer, register_bpe
from fairseq.data.encoders.base import symbol_source
from fairseq.data.encoders.configs import (
    BertBPEConfig,
    HuggingFaceByteLevelBPEConfig,
    HuggingFaceTokenizerConfig,
    SentencepieceConfig,
)
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from tests.common import ROOT

FILES = ROOT / "tests/data/gpt2_tiny"
LINES = ["the man said that", "", "in and on  it is", "wörd 漢"]


def symbols_of(bpe, lines):
    source = symbol_source(bpe)
    ids, sizes = source.encode_lines(lines)
    rows = np.split(ids, np.cumsum(sizes)[:-1])
    return [" ".join(source.symbols[i] for i in row) for row in rows]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("spm")
    text = [f"the man number {i} said that it is in and on it" for i in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(folder / "m"), vocab_size=30, minloglevel=2
    )
    return str(folder / "m.model")


def test_sentencepiece(sentencepiece_model):
    bpe = build_bpe(SentencepieceConfig(_name="sentencepiece", sentencepiece_model=sentencepiece_model))
    text = "the man said that"
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode("漢 the").split()[1] == "漢"  # outside the model: a symbol of its own, not <unk>
    assert symbols_of(bpe, LINES) == [bpe.encode(line) for line in LINES]
    assert bpe.is_beginning_of_word("\u2581the") and bpe.is_beginning_of_word("<s>")
    assert not bpe.is_beginning_of_word("the")
    sampling = build_bpe(
        SentencepieceConfig(
            _name="sentencepiece",
            sentencepiece_model=sentencepiece_model,
            sentencepiece_enable_sampling=True,
            sentencepiece_alpha=0.1,
        )
    )
    assert len({sampling.encode(text) for _ in range(20)}) > 1 and sampling.decode(sampling.encode(text)) == text


def test_sentencepiece_needs_its_model(tmp_path):
    with pytest.raises(ConfigError, match="--sentencepiece-model"):
        build_bpe("sentencepiece")
    (tmp_path / "m").write_text("no model")
    with pytest.raises(DataError, match="not a sentencepiece model"):
        build_bpe(SentencepieceConfig(_name="sentencepiece", sentencepiece_model=str(tmp_path / "m")))


def test_bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "man", "##ly", "said", ".", "it", "is"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    bpe = build_bpe(BertBPEConfig(_name="bert", bpe_vocab_file=str(tmp_path / "vocab.txt")))
    assert bpe.encode("The manly said.") == "the man ##ly said ."
    assert bpe.decode("the man ##ly said .") == "the manly said."
    assert symbols_of(bpe, LINES) == [bpe.encode(line) for line in LINES]
    assert bpe.is_beginning_of_word("man") and not bpe.is_beginning_of_word("##ly")
    with pytest.raises(ConfigError, match="--bpe-vocab-file"):
        build_bpe("bert")


def test_hf_byte_bpe():
    settings = HuggingFaceByteLevelBPEConfig(
        _name="hf_byte_bpe", bpe_vocab=str(FILES / "encoder.json"), bpe_merges=str(FILES / "vocab.bpe")
    )
    bpe = build_bpe(settings)
    assert bpe.encode("he said, it is not") == "258 531 11 340 318 407"
    assert bpe.decode("258 <mask> 11 <unk>") == "he<mask>,<unk>"
    assert symbols_of(bpe, LINES) == [bpe.encode(line) for line in LINES]
    assert bpe.is_beginning_of_word("531") and not bpe.is_beginning_of_word("258")
    assert bpe._tables is not None
    assert [list(map(str, bpe._tables.encode(line))) for line in LINES] == [bpe.encode(line).split() for line in LINES]
    settings.bpe_add_prefix_space = True
    assert build_bpe(settings).encode("said") == "531"


def test_hf_tokenizer(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    path = str(tmp_path / "tokenizer.json")
    ByteLevelBPETokenizer(str(FILES / "encoder.json"), str(FILES / "vocab.bpe")).save(path)
    bpe = build_bpe(HuggingFaceTokenizerConfig(_name="hf_tokenizer", hf_tokenizer_file=path))
    assert bpe.encode("he said, it is not") == "258 531 11 340 318 407"
    assert bpe.decode(bpe.encode(LINES[2])) == LINES[2]
    assert bpe.is_beginning_of_word("531") and not bpe.is_beginning_of_word("258")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json"):
        build_bpe(HuggingFaceTokenizerConfig(_name="hf_tokenizer", hf_tokenizer_file=str(tmp_path / "bad.json")))


def test_building():
    from omegaconf import OmegaConf

    assert build_bpe(None) is None and build_tokenizer(Namespace(tokenizer=None)) is None
    assert build_tokenizer("space").encode(" a \t b") == " a b"
    files = {"gpt2_encoder_json": str(FILES / "encoder.json"), "gpt2_vocab_bpe": str(FILES / "vocab.bpe")}
    for settings in (Namespace(bpe="gpt2", **files), OmegaConf.create({"_name": "gpt2", **files})):
        bpe = build_bpe(settings)
        assert bpe.encode(" the") == "262" and build_bpe(bpe) is bpe
    with pytest.raises(ConfigError, match="did you mean 'gpt2'"):
        build_bpe("gpt")


def test_plugin_encoders():
    @register_bpe("test_upper")
    class Upper:
        def __init__(self, args):
            self.args = args

        def encode(self, x):
            return " ".join(x.upper())

    bpe = build_bpe(Namespace(bpe="test_upper"))
    assert bpe.args.bpe == "test_upper" and symbols_of(bpe, ["ab", "", "b c"]) == ["A B", "", "B C"]


def test_cache_names(monkeypatch, tmp_path):
    url = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe/encoder.json"
    assert cache.url_to_filename(url) == "e2aab4d600e7568c2d88fc7732130ccc815ea84ec63906cb0913c7a3a4906a2e"
    for name in ("PYTORCH_FAIRSEQ_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(cache.cache_directory()).endswith(".cache/torch/pytorch_fairseq")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache.cache_directory()) == "/x/torch/pytorch_fairseq"
    monkeypatch.setenv("TORCH_HOME", "/t")
    assert str(cache.cache_directory()) == "/t/pytorch_fairseq"
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path))
    assert cache.cache_directory() == tmp_path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()
        self.wfile.write(b"hello")

    def answer(self):
        self.send_response(200)
        self.send_header("ETag", '"v1"')
        self.end_headers()

    def log_message(self, *args):
        pass


def test_download_then_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file"
    path = cache.cached_path(url)
    server.shutdown()
    server.server_close()
    assert Path(path).read_text() == "hello" and path.endswith(cache.url_to_filename(url, '"v1"'))
    assert json.loads(Path(path + ".json").read_text()) == {"url": url, "etag": '"v1"'}
    assert cache.cached_path(url) == path  # the server is gone
    with pytest.raises(DataNotFoundError) as caught:
        cache.cached_path(url + "2", option="--gpt2-encoder-json")
    for part in (url + "2", cache.url_to_filename(url + "2"), str(tmp_path), "--gpt2-encoder-json"):
        assert part in str(caught.value)
