"""Trainings that are killed, or whose disk fails, go on as if nothing had been; a few here, ``benchmarks/faults.py`` runs hundreds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.disks import TROUBLES
from tests.faults.kills import CASES, compare, differing, phase_of, updates_in_place
from tests.runs import ROOT, environment

QUICK = ("full in a write", "data worker killed")


def forked(module: str, *words: object, status: int = 0) -> str:
    """What ``python -m tests.faults.MODULE`` prints: children are forked from a process without threads, unlike this one."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, words)],
        cwd=ROOT,
        env=environment(FAIRSEQ_MALLOC="default"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout[-5000:] + done.stderr[-3000:]
    return done.stdout


def test_a_few_kills(tmp_path: Path) -> None:
    forked("kills", "--count", 8, "--seed", 5, "--cases", "async-workers", "--details", tmp_path / "faults")
    faults = [json.loads(line) for line in (tmp_path / "faults").read_text().splitlines()]
    assert sum(fault["status"] == -9 for fault in faults) >= 8
    assert faults[-1]["kind"] == "the end" and faults[-1]["status"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_many_kills(case: str) -> None:
    forked("kills", "--count", 30, "--seed", 1, "--cases", case)


def test_a_few_troubles() -> None:
    forked("disks", "--faults", *QUICK)


@pytest.mark.slow
def test_all_troubles() -> None:
    forked("disks", "--faults", *(name for name in TROUBLES if name not in QUICK))


EXPECTED = {
    "nothing": "",
    "position in the data": "other ids",
    "optimizer": "other weights",
    "seed": "other ids",
    "random numbers": "other loss",
    "average of the weights": ".extra_state.ema.",
    "files that appear at once": "cannot be read",
    "temporary files are removed": ".tmp is left",
}


def test_what_is_left_out_is_found() -> None:
    """A comparison that finds nothing has to be able to find something."""
    found = {row["without"]: row["found"] for row in map(json.loads, forked("controls").splitlines())}
    assert found.keys() == EXPECTED.keys()
    assert found.pop("nothing") == []
    for name, complaints in found.items():
        assert any(EXPECTED[name] in text for text in complaints), (name, complaints)
    weights = found["optimizer"]
    assert not any("other ids" in text for text in weights), weights  # the comparison tells one from the other


# -- the comparison itself --------------------------------------------------------------------------------------------


def update(number: int, **other: object) -> dict[str, object]:
    return {"event": "update", "updates": number, "ids": [[number]], "loss": ["0x1p+1"], "weights": "w", **other}


def test_repeated_and_skipped_updates_are_noticed() -> None:
    expected = {number: {key: update(number)[key] for key in ("ids", "loss", "weights")} for number in range(1, 9)}
    begun = {"event": "begin", "updates": 3}
    assert list(compare([begun, update(4), update(5)], 3, expected)) == []
    assert list(compare([], 3, expected)) == []
    assert "not from 3" in next(compare([{**begun, "updates": 2}, update(3)], 3, expected))
    for numbers in ((3, 4), (5, 6), (4, 6), (4, 4)):
        assert "it makes" in next(compare([begun, *map(update, numbers)], 3, expected))
    assert "other ids" in next(compare([begun, update(4, ids=[[5]])], 3, expected))
    assert "other loss" in next(compare([begun, update(4, loss=["0x1p+2"])], 3, expected))


def test_phases() -> None:
    begin, save, renamed = {"event": "begin"}, {"event": "save", "updates": 2}, {"event": "call", "name": "replace"}
    prune, saved = {"event": "prune"}, {"event": "saved"}
    events = [begin, update(1), update(2), save, renamed, prune, saved, update(3), {**save, "updates": 3}, renamed]
    phases = [phase_of(events[:count]) for count in range(len(events) + 1)]
    assert phases[:4] == ["startup", *["training"] * 3]
    assert phases[4:8] == ["saving", "renaming", "deleting", "training"] and phases[-2:] == ["saving", "renaming"]
    assert phase_of([*events, {"event": "end"}]) == "ended"
    assert [updates_in_place(events[:count]) for count in (4, 5, 9, 10)] == [0, 2, 2, 3]


def test_differences_have_places() -> None:
    assert list(differing({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.0}]})) == []
    assert list(differing({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]})) == [".a.1.b"]
    assert list(differing({"a": 1}, {"c": 1})) == [""] and list(differing([1], [1, 2], "x")) == ["x"]
