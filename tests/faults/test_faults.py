"""Damaged inputs get one sentence, or the right answer. A few here; ``python -m tests.faults.fuzz`` tries thousands."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from fairseq.cli.common import fail
from fairseq.errors import DataError
from tests.faults import fuzz
from tests.faults.damage import damaged, of_bytes, of_json, of_lines, of_value
from tests.faults.kinds import KINDS, Kind
from tests.faults.worker import attempt


def faults(name: str, count: int) -> list[dict[str, object]]:
    found = list(fuzz.attempts(name, count, seed=0))
    assert [report["number"] for report in found] == list(range(count))
    return [report for report in found if fuzz.is_fault(name, report)]


@pytest.mark.parametrize("name", ["checkpoint", "yaml"])
def test_a_few_damaged_files(name: str) -> None:
    assert not faults(name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files(name: str) -> None:
    assert not faults(name, 100)


def test_damage_is_the_same_for_the_same_seed() -> None:
    data = b'{"a": [1, {"b": "two"}], "c": null}'
    for way in (of_bytes, of_lines, of_json):
        made = [damaged(way, random.Random(number), data) for number in range(50)]
        assert made == [damaged(way, random.Random(number), data) for number in range(50)]
        assert data not in made and len(set(made)) > 15
    value = {"a": [1, {"b": 2}]}
    assert of_value(random.Random(1), value) is not value and value == {"a": [1, {"b": 2}]}


def test_outcomes(tmp_path: Path) -> None:
    def tell(outcome: str, action: object) -> None:
        def answer(folder: Path) -> str:
            return action() if callable(action) else str(action)

        kind = Kind(lambda folder: None, {}, answer)
        assert attempt(kind, tmp_path, "good")[0] == outcome

    def bug() -> NoReturn:
        raise KeyError("x")

    def mistake() -> NoReturn:
        raise DataError("this file is damaged")

    def other_status() -> NoReturn:
        sys.exit(1)

    tell("unchanged", "good")
    tell("silent", "bad")
    tell("traceback", bug)
    tell("traceback", other_status)
    tell("sentence", mistake)
    tell("sentence", lambda: fail("fairseq-train", "this file is damaged"))
    tell("memory", lambda: fail("fairseq-train", "too little memory (x)"))


def test_a_child_that_hangs_or_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys, time, json\n"
        "start, stop = int(sys.argv[4]), int(sys.argv[5])\n"
        "for number in range(start, stop):\n"
        "    print(json.dumps({'number': number}), flush=True)\n"
        "    if number == 1: time.sleep(60)\n"
        "    if number == 3: os._exit(9)\n"
        "    print(json.dumps({'number': number, 'outcome': 'sentence', 'file': 'f', 'said': ''}), flush=True)\n"
    )
    popen = fuzz.subprocess.Popen
    monkeypatch.setattr(
        fuzz.subprocess, "Popen", lambda words, **options: popen([words[0], "-c", program, *words[2:]], **options)
    )
    monkeypatch.setattr(fuzz, "_prepare", lambda name, good: None)
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 0.5)
    outcomes = [report["outcome"] for report in fuzz.attempts("checkpoint", 6, 0)]
    assert outcomes == ["sentence", "hang", "sentence", "crash", "sentence", "sentence"]
