"""Generated inputs of every kind are read, or refused with one sentence. A few here, more with the marker ``slow``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from hypothesis import strategies as st

from tests.faults.fuzz import environment
from tests.faults.properties import PROPERTIES, Property, check, in_file
from tests.runs import ROOT

FEW, MANY = 12, 300  # MANY times nine kinds: 2,700


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_few_generated_files(name: str, same_log: None) -> None:
    count = FEW if name != "yaml" else 3  # composing settings takes long
    counts = check(name, count)
    assert counts["read"] and sum(counts.values()) >= count


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_many_generated_files(name: str) -> None:
    """In a process of its own, since one that a library ends must not end the tests."""
    words = [sys.executable, "-m", "tests.faults.properties", "--count", str(MANY), "--kinds", name]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["refused"] > 10 or name == "vocab.txt"
    assert counts["read"] > 10


@pytest.mark.parametrize("error", [KeyError, ZeroDivisionError, SystemError])
def test_what_is_neither_is_found(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path) -> str:
        if b"7" in (folder / "x").read_bytes():
            raise error("bug")
        return ""

    monkeypatch.setitem(PROPERTIES, "x", Property(st.text("0123456789").map(str.encode), in_file("x"), read))
    with pytest.raises(AssertionError, match=f"traceback.*{error.__name__}"):
        check("x", 200)
