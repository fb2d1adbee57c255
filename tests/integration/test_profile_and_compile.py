"""``--profile`` leaves a trace where it says; ``--compile`` trains to the same losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import DATA, TINY_FLAGS, assert_printed_close, train, train_inner

SHORT = [*TINY_FLAGS, "--disable-validation", "--no-save", "--no-epoch-checkpoints"]


def test_profile_writes_a_trace(tmp_path: Path):
    done = train(DATA, *SHORT, "--max-update", 8, "--profile", "--save-dir", "run", cwd=tmp_path)
    assert "a trace of 3 updates is in run/profile" in done.stdout
    (trace,) = (tmp_path / "run" / "profile").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"forward", "backward"} <= names


def test_profile_of_a_run_that_is_too_short(tmp_path: Path):
    done = train(DATA, *SHORT, "--max-update", 2, "--profile", "--tensorboard-logdir", "board", cwd=tmp_path)
    assert "the run ended after 2 updates" in done.stdout


@pytest.mark.slow
def test_compiled_model_trains_to_the_same_losses(tmp_path: Path):
    plain = train_inner(train(DATA, *SHORT, "--max-update", 6, cwd=tmp_path).stdout)
    compiled = train_inner(train(DATA, *SHORT, "--max-update", 6, "--compile", cwd=tmp_path).stdout)
    assert len(plain) == 6
    for update, row in plain.items():
        wanted = {key: row[key] for key in ("loss", "lr", "gnorm")}
        assert_printed_close(wanted, compiled[update], units=3)
