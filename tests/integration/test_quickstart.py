"""The quickstart, shortened to a few updates: every step runs and leaves what the read-me names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import ROOT

QUICKSTART = ROOT / "examples" / "quickstart"


def test_documents_are_whole_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import corpus

    books = sorted((QUICKSTART / "books").glob("*.txt"))
    kept, held_out = corpus.write_split(books, tmp_path / "train.txt", tmp_path / "valid.txt")
    assert kept > 8 * held_out > 0
    train, valid = ((tmp_path / name).read_text(encoding="utf-8") for name in ("train.txt", "valid.txt"))
    assert train.endswith("\n\n") and train.count("\n\n") == kept and valid.count("\n\n") == held_out
    shared = set(valid.split("\n\n")) & set(train.split("\n\n"))
    assert shared == {""}
    assert 750_000 < len(train) + len(valid) < 1_100_000


def test_quickstart(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(QUICKSTART / "run.py"), "--out", str(tmp_path / "run"), "--max-update", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for made in ("data-bin/train.bin", "checkpoints/checkpoint_best.pt", "loss.png", "tensorboard/train_inner"):
        assert (tmp_path / "run" / made).exists(), made
    rows = re.findall(r"^  (unigram model|this model) +([\d.]+) +([\d.]+)%$", done.stdout, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == ["unigram model", "this model"]
    unigram, ours = (float(perplexity) for _, perplexity, _ in rows)
    assert 100 < unigram < 4000 and ours > unigram  # three updates teach nothing yet
