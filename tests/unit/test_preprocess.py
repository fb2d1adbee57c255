"""fairseq-preprocess: the original's bytes, for any number of workers, from ids and from raw text."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fairseq.cli import preprocess
from fairseq.data import preprocessing
from fairseq.data import text as chunks
from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.dataclass.parser import get_preprocessing_parser, parse_args_and_arch
from fairseq.errors import ConfigError, DataError, DataNotFoundError, FairseqError, OutOfScopeError
from tests.common import ROOT

GOLDEN = ROOT / "tests/data/preprocess"
TINY = ROOT / "tests/data/gpt2_tiny"
GPT2 = ("--bpe", "gpt2", "--gpt2-encoder-json", TINY / "encoder.json", "--gpt2-vocab-bpe", TINY / "vocab.bpe")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many workers get something to do even on small files, and blocks end in the middle of them."""
    monkeypatch.setattr(chunks, "LEAST_BYTES", 1)
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 1000)


def run(destdir, *words, only_source=True):
    flags = ["--destdir", destdir, *(["--only-source"] if only_source else []), *words]
    args = parse_args_and_arch(get_preprocessing_parser(), input_args=[str(word) for word in flags])
    preprocess.main(args)
    return destdir


def files(folder):
    """The data files."""
    others = ("preprocess.log", "manifest.json")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name not in others}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_of_the_original(tmp_path, workers):
    valid = GOLDEN / "sentences.bpe"
    run(tmp_path, "--srcdict", GOLDEN / "dict.txt", "--validpref", valid, "--workers", workers)
    for name in ("dict.txt", "valid.bin", "valid.idx"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name


def test_label_dictionary_of_the_original(tmp_path):
    run(tmp_path, "--trainpref", GOLDEN / "train.label", "--workers", 6)
    assert (tmp_path / "dict.txt").read_bytes() == (GOLDEN / "label.dict.txt").read_bytes()
    digests = {s: hashlib.sha256((tmp_path / f"train.{s}").read_bytes()).hexdigest()[:16] for s in ("bin", "idx")}
    assert digests == {"bin": "9a7844ad5472555c", "idx": "93bf39f2c24aac8b"}


LINES = ["he said, it is not", "", "  in and on  it \t", "wörd 漢", "the man's that", "", "that is in it"] * 20


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "raw.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")  # the last line has no end
    return path


@pytest.fixture
def ids(tmp_path):
    from fairseq.data.encoders.gpt2_bpe import get_encoder

    encoder = get_encoder(str(TINY / "encoder.json"), str(TINY / "vocab.bpe"))
    path = tmp_path / "raw.bpe"
    path.write_text("".join(" ".join(map(str, encoder.encode(line.strip()))) + "\n" for line in LINES))
    return path


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("options", [(), ("--nwordssrc", 20), ("--thresholdsrc", 21, "--padding-factor", 1)])
def test_raw_text_gives_the_same_as_two_steps(tmp_path, text, ids, workers, options):
    two = run(tmp_path / "two", "--trainpref", ids, "--validpref", f"{ids},{ids}", *options)
    one = run(
        tmp_path / "one", "--trainpref", text, "--validpref", f"{text},{text}", *GPT2, *options, "--workers", workers
    )
    assert files(one) == files(two)
    assert sorted(files(one)) == [
        "dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx", "valid1.bin", "valid1.idx"
    ]  # fmt: skip
    again = run(tmp_path / "again", "--testpref", text, *GPT2, "--srcdict", two / "dict.txt", "--workers", workers)
    assert files(again)["test.bin"] == files(two)["train.bin"]


def test_content(tmp_path, text):
    run(tmp_path / "out", "--trainpref", text, *GPT2)
    data = load_indexed_dataset(str(tmp_path / "out/train"))
    dictionary = Dictionary.load(str(tmp_path / "out/dict.txt"))
    assert len(data) == len(LINES) and data[1].tolist() == [dictionary.eos()]
    assert dictionary.string(data[0]) == "258 531 11 340 318 407"
    assert data.dtype == np.uint16


def test_json_lines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": " he said"}\n\n{"text": "a\\nb"}\n{"text": ""}\n')
    run(tmp_path / "out", "--trainpref", path, *GPT2, "--jsonlines")
    data = load_indexed_dataset(str(tmp_path / "out/train"))
    dictionary = Dictionary.load(str(tmp_path / "out/dict.txt"))
    assert [dictionary.string(item) for item in data] == ["339 531", "", "64 198 65", ""]
    path.write_text('{"text": "fine"}\nnot json\n')
    with pytest.raises(DataError, match="not json"):
        run(tmp_path / "bad", "--trainpref", path, *GPT2, "--jsonlines")


@pytest.mark.parametrize("impl", ["lazy", "cached"])
def test_older_kinds(tmp_path, ids, impl):
    reference = load_indexed_dataset(str(run(tmp_path / "mmap", "--trainpref", ids) / "train"))
    run(tmp_path / impl, "--trainpref", ids, "--dataset-impl", impl, "--workers", 3)
    data = load_indexed_dataset(str(tmp_path / impl / "train"))
    assert type(data).__name__ == "IndexedCachedDataset"
    assert [item.tolist() for item in data] == [item.tolist() for item in reference]


def test_raw_kind_copies_the_text(tmp_path, ids):
    run(tmp_path / "out", "--trainpref", ids, "--dataset-impl", "raw")
    assert (tmp_path / "out/train").read_bytes() == ids.read_bytes()  # the original calls it train.None-None
    data = load_indexed_dataset(str(tmp_path / "out/train"), Dictionary.load(str(tmp_path / "out/dict.txt")))
    assert len(data) == len(LINES)


def test_languages(tmp_path):
    for lang, words in (("in", "a b"), ("out", "x y z")):
        (tmp_path / f"t.{lang}").write_text(f"{words}\n" * 3)
    prefix = tmp_path / "t"
    out = run(tmp_path / "o", "--trainpref", prefix, "-s", "in", "-t", "out", only_source=False)
    data = {f"train.in-out.{lang}.{suffix}" for lang in ("in", "out") for suffix in ("bin", "idx")}
    assert set(files(out)) == data | {"dict.in.txt", "dict.out.txt"}
    out = run(tmp_path / "j", "--trainpref", prefix, "-s", "in", "-t", "out", "--joined-dictionary", only_source=False)
    assert files(out)["dict.in.txt"] == files(out)["dict.out.txt"]
    assert len(Dictionary.load(str(out / "dict.in.txt"))) == 16
    out = run(tmp_path / "s", "--trainpref", prefix, "-s", "in")
    assert set(files(out)) == {"dict.in.txt", "train.in-None.in.bin", "train.in-None.in.idx"}


def test_log(tmp_path, caplog):
    (tmp_path / "t").write_text("a b\n\nq\n")
    (tmp_path / "e").write_text("")
    (tmp_path / "d").write_text("a 1\n")
    with caplog.at_level(logging.INFO):
        words = ("--srcdict", tmp_path / "d", "--trainpref", tmp_path / "t", "--validpref", tmp_path / "e")
        run(tmp_path / "o", *words)
    expected = [
        "[None] Dictionary: 5 types",
        f"[None] {tmp_path}/t: 3 sents, 6 tokens, 33.3% replaced (by <unk>)",
        "[None] Dictionary: 5 types",
        f"[None] {tmp_path}/e: 0 sents, 0 tokens",
        f"Wrote preprocessed data to {tmp_path}/o",
    ]
    assert [record.message for record in caplog.records] == expected
    written = (tmp_path / "o/preprocess.log").read_text().splitlines()
    assert written[0].startswith("Namespace(") and written[1:] == expected
    assert not logging.getLogger("fairseq_cli.preprocess").handlers
    assert len(load_indexed_dataset(str(tmp_path / "o/valid"))) == 0


@pytest.mark.parametrize("flags", [(), ("--dict-only",)])
def test_an_empty_training_file_is_a_mistake(tmp_path, capsys, flags):
    (tmp_path / "t").write_text("")
    words = ["--only-source", "--trainpref", str(tmp_path / "t"), "--destdir", str(tmp_path / "o"), *flags]
    with pytest.raises(SystemExit) as ended:
        preprocess.cli_main(words)
    assert ended.value.code == 2 and "t is empty: there is nothing to train on" in capsys.readouterr().err


def test_dictionary_only(tmp_path, ids):
    out = run(tmp_path / "o", "--trainpref", ids, "--dict-only")
    assert set(files(out)) == {"dict.txt"}
    assert "Wrote" not in (out / "preprocess.log").read_text()


def mistakes(tmp_path, text, ids):
    (tmp_path / "bad.txt").write_text("a 1\nb\n")
    (tmp_path / "latin").write_bytes(b"fine\n" * 30 + b"caf\xe9\n")
    numbers = ("--trainpref", ids)
    return [
        (DataNotFoundError, "nowhere", ("--trainpref", "nowhere")),
        (DataNotFoundError, "nowhere", (*numbers, "--validpref", f"{ids},nowhere")),
        (DataNotFoundError, "nodict", (*numbers, "--srcdict", "nodict")),
        (DataError, "line 2", (*numbers, "--srcdict", tmp_path / "bad.txt")),
        (ConfigError, "--trainpref", ("--validpref", ids)),
        (DataError, "encode it twice", (*numbers, *GPT2)),
        (DataError, "UTF-8", ("--trainpref", tmp_path / "latin", "--workers", 3)),
        (ConfigError, "--jsonlines", (*numbers, "--jsonlines")),
        (ConfigError, "raw", ("--trainpref", text, *GPT2, "--dataset-impl", "raw")),
        (OutOfScopeError, "huffman", (*numbers, "--dataset-impl", "huffman")),
        (OutOfScopeError, "align", (*numbers, "--alignfile", "x")),
        (ConfigError, "--workers", (*numbers, "--workers", 0)),
        (ConfigError, "did you mean", (*numbers, "--task", "maskd_lm")),
    ]


def test_mistakes_leave_nothing_behind(tmp_path, text, ids):
    for kind, message, words in mistakes(tmp_path, text, ids):
        out = tmp_path / "out"
        with pytest.raises((FairseqError, SystemExit)) as caught:
            run(out, *words)
        if caught.type is not SystemExit:
            assert issubclass(caught.type, kind) and message in str(caught.value), (words, caught.value)
        assert not out.exists() or set(os.listdir(out)) <= {"preprocess.log"}, words
        shutil.rmtree(out, ignore_errors=True)


def test_destination_that_cannot_be_written(tmp_path, ids, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot preprocess into"):
        run(tmp_path / "file", "--trainpref", ids)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preprocessing, "write_index", full)
    with pytest.raises(DataError, match="No space left"):
        run(tmp_path / "o", "--trainpref", ids, "--workers", 2)
    assert set(os.listdir(tmp_path / "o")) == {"preprocess.log"}


def test_existing_dictionary_is_not_overwritten(tmp_path, ids):
    run(tmp_path / "o", "--trainpref", ids)
    before = files(tmp_path / "o")
    with pytest.raises(FileExistsError, match=r"dict\.txt exists already"):
        run(tmp_path / "o", "--trainpref", ids)
    assert files(tmp_path / "o") == before


def test_command(tmp_path, text):
    """The real command: quick, without torch, one line for a mistake."""
    flags = ["--only-source", "--trainpref", str(text), "--destdir", str(tmp_path / "o"), *map(str, GPT2)]
    program = "import sys; from fairseq.cli.preprocess import cli_main; cli_main(); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, "--workers", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "140" in done.stdout
    line = "[None] Dictionary: "
    assert any(f" | INFO | fairseq_cli.preprocess | {line}" in row for row in done.stdout.splitlines())
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.preprocess", *flags, "--worker", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "--workers" in done.stderr and done.stderr.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.preprocess", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "exists already" in done.stderr


def test_plugin_tasks_may_have_their_own_dictionary(tmp_path, ids):
    from fairseq.registry import TASKS

    class OwnDictionary:
        @classmethod
        def load_dictionary(cls, filename):
            dictionary = Dictionary(extra_special_symbols=["<own>"])
            dictionary.add_from_file(filename)
            return dictionary

    TASKS.register("test_own_dictionary")(OwnDictionary)
    (tmp_path / "d").write_text("531 5\n")
    run(tmp_path / "o", "--validpref", ids, "--srcdict", tmp_path / "d", "--task", "test_own_dictionary")
    assert int(load_indexed_dataset(str(tmp_path / "o/valid")).read_tokens(0, 10**6).max()) == 5
    assert json.dumps(sorted(files(tmp_path / "o"))) == '["dict.txt", "valid.bin", "valid.idx"]'


def test_carriage_returns_alone_are_told(tmp_path, caplog):
    (tmp_path / "train.txt").write_bytes(b"a b\rb a\r\na b\n")
    (tmp_path / "dict.txt").write_text("a 2\nb 2\n")
    run(tmp_path / "out", "--trainpref", tmp_path / "train.txt", "--srcdict", tmp_path / "dict.txt")
    assert "train.txt has 1 carriage returns" in caplog.text


@pytest.mark.parametrize("which", ["trainpref", "validpref", "testpref"])
def test_any_input_that_is_encoded_already_is_refused(tmp_path, text, ids, which):
    files = dict.fromkeys(("trainpref", "validpref", "testpref"), text) | {which: ids}
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    with pytest.raises(DataError, match=f"{ids} consists of numbers"):
        run(tmp_path / "out", *GPT2, *flags)
