"""What the tests of downstream data share: tiny files, a tiny encoder with its dictionary, and reading back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.cli import preprocess_task
from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import load_indexed_dataset
from tests.common import ROOT

TINY = ROOT / "tests/data/gpt2_tiny"
GPT2 = ("--bpe", "gpt2", "--gpt2-encoder-json", TINY / "encoder.json", "--gpt2-vocab-bpe", TINY / "vocab.bpe")


def write(path: Path, *lines: str, end: str = "\n", bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + end for line in lines)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def row(*fields: object) -> str:
    return "\t".join(map(str, fields))


def dictionary_of_ids(folder: Path) -> Path:
    """A ``dict.txt`` with every id of the tiny encoder."""
    encoder = json.loads((TINY / "encoder.json").read_text())
    return write(folder / "dict.txt", *(f"{idx} 1" for idx in sorted(encoder.values())))


def preprocess(folder: Path, task: str, *flags: object, bpe: Sequence[object] = GPT2, dest: str = "bin") -> Path:
    """Run the command on ``folder``; gives the directory that it made."""
    target = folder.parent / dest
    words = ["--task", task, "--data-dir", folder, "--dest", target, "--srcdict", dictionary_of_ids(folder.parent)]
    preprocess_task.main(preprocess_task.get_parser().parse_args([str(word) for word in (*words, *bpe, *flags)]))
    return target


def texts(data: Path, column: str, split: str) -> list[str]:
    """The texts of a binarized column, decoded with the tiny encoder."""
    from fairseq.data.encoders.base import build_bpe
    from fairseq.data.encoders.configs import GPT2BPEConfig

    config: Any = GPT2BPEConfig(gpt2_encoder_json=str(TINY / "encoder.json"), gpt2_vocab_bpe=str(TINY / "vocab.bpe"))
    config._name = "gpt2"
    bpe = build_bpe(config)
    return [bpe.decode(line) for line in symbols(data, column, split)]


def symbols(data: Path, column: str, split: str) -> list[str]:
    """The symbols of a binarized column, joined by spaces, a line an example."""
    dictionary = Dictionary.load(data / column / "dict.txt")
    dataset = load_indexed_dataset(str(data / column / split), dictionary)
    assert dataset is not None, f"{data / column} has no {split}"
    return [dictionary.string(dataset[i]) for i in range(len(dataset))]
