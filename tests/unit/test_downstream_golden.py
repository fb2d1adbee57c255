"""``fairseq-preprocess-task`` on files of the original's GLUE script: the original's bytes, for any number of workers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fairseq.cli import preprocess_task
from fairseq.data import text
from tests.common import ROOT

PROCESSED = ROOT / "tests/data/glue_processed"
DICTIONARY = ROOT / "tests/data/reference/data-bin/dict.txt"

# The first sixteen digits of SHA-256 of the original's files.
COLA = """
    8e490acd53a5f268 input0/dict.txt    db50b9d208e5e8b5 input0/train.bin   5c903aecc2349083 input0/train.idx
    2435a037c60bcbfa input0/valid.bin   05e1ae134a9d07ce input0/valid.idx   8c4ebd382c110d50 label/dict.txt
    9a7844ad5472555c label/train.bin    93bf39f2c24aac8b label/train.idx    8a2e6d339119f63a label/valid.bin
    66385f207ebd5893 label/valid.idx
"""
STS_B = """
    8e490acd53a5f268 input0/dict.txt    dbaa3d525348c4d4 input0/train.bin   d5fad14cbcfd8184 input0/train.idx
    44608b67c36e4a61 input0/valid.bin   4971ab7c428f6479 input0/valid.idx   8e490acd53a5f268 input1/dict.txt
    93ac8c881a06244e input1/train.bin   4efc4d28a0a007f6 input1/train.idx   411fd2b32a83a8a2 input1/valid.bin
    7d45a3aeed128816 input1/valid.idx   40af71824619df30 label/train.label  10cbf69b4cc65dc2 label/valid.label
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Many workers get something to do even on small files, and blocks end in the middle of them."""
    monkeypatch.setattr(text, "LEAST_BYTES", 1)
    monkeypatch.setattr(text, "BLOCK_BYTES", 1000)


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def expected(table: str) -> dict[str, str]:
    words = table.split()
    return dict(zip(words[1::2], words[::2], strict=True))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("task", "folder", "flags", "table"),
    [
        ("glue/CoLA", "CoLA", (), COLA),
        ("glue/STS-B", "STS-B", (), STS_B),
        ("plain", "CoLA", (), COLA),
        ("plain", "STS-B", ("--regression-target", "--divide-labels-by", "5"), STS_B),
    ],
)
def test_bytes_of_the_original(tmp_path, workers, task, folder, flags, table):
    dest = tmp_path / "bin"
    words = ["--task", task, "--data-dir", PROCESSED / folder, "--dest", dest, "--srcdict", DICTIONARY]
    preprocess_task.cli_main([*map(str, words), "--workers", str(workers), *flags])
    assert digests(dest) == expected(table)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]  # nothing is left beside it
