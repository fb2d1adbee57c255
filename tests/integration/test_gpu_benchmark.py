"""``benchmarks/gpu.py``: a dry run walks every step on the CPU; cases that fail, hang or kill their process are lines in the file."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.common import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"
STATUSES = {"ok", "skipped", "unsupported", "error", "timed out", "out of memory"}


def run(*arguments: object, timeout: float = 400) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_dry_run_walks_every_step_and_its_file_can_be_drawn(tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    said = run("--dry-run", "--seconds", 380, "--json", target)
    results = json.loads(target.read_text())
    steps = ["machine", "operators", "waits", "attention", "mixers", "training"]
    assert results["dry_run"] and list(results["steps"]) == steps
    rows = [(step, case, row) for step, cases in results["steps"].items() for case, row in cases.items()]
    assert {row["status"] for *_, row in rows} <= STATUSES
    assert sum(results["counts"].values()) == len(rows)
    wrong = [row for row in rows if row[2]["status"] not in ("ok", "unsupported")]
    assert not wrong
    # FlexAttention has no backward pass on the CPU, and Transformers need not be there.
    unsupported = {case.split(",")[0] for _, case, row in rows if row["status"] == "unsupported"}
    assert unsupported <= {"flex", "backend flex", "transformers"}
    assert results["steps"]["operators"]["not in the table"]["operators"] == []
    assert {"goal", "wanted", "found", "status"} <= set(results["goals"][0])
    assert "s left] training: roberta_alibi, T 32, compiled: ok" in said
    drawn = Path(run("--picture", target).strip())
    assert drawn == tmp_path / "gpu.png" and drawn.read_bytes().startswith(b"\x89PNG")


STEP = """
import os, time
from gpu_steps.setting import Case

def cases(setting):
    def fail(): raise ValueError("this is wrong\\nand more")
    return [
        Case("works", lambda: {"value": 1}), Case("fails", fail), Case("dies", lambda: os._exit(7)),
        Case("hangs", lambda: time.sleep(60), limit=1), Case("goes on", lambda: {"value": 2}),
        Case("takes long", lambda: {}, least=1000),
    ]
"""


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that runs cases. It is imported as the script does."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_steps.running")


@pytest.fixture
def setting(running: Any, tmp_path: Path) -> Any:
    return running.Setting("cpu", str(tmp_path))


def test_a_case_that_goes_wrong_concerns_itself_alone(
    running: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unlucky.py").write_text(STEP)
    package = sys.modules["gpu_steps"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    rows: dict[str, Any] = {}
    clock = running.Clock(time.monotonic() + 60)
    running.run_step("unlucky", setting, clock, "fork", lambda step, case, row: rows.update({case: row}))
    assert [row["status"] for row in rows.values()] == ["ok", "error", "error", "timed out", "ok", "skipped"]
    assert rows["fails"]["why"] == "ValueError: this is wrong" and "7" in rows["dies"]["why"]
    assert rows["goes on"]["value"] == 2 and "at least 1000 s" in rows["takes long"]["why"]


def test_a_worker_may_be_started_afresh(running: Any, setting: Any) -> None:
    worker = running.Worker("spawn", "machine", setting)
    row, fit = worker.run(1, 120)
    worker.stop(fit)
    assert (row["status"], fit) == ("ok", True) and row["torch"]


def test_goals_are_met_or_not_or_not_measured(running: Any) -> None:
    module = importlib.import_module("gpu_steps.goals")
    assert {row["status"] for row in module.goals({})} == {"not measured"}

    def attention(backend: str, dropout: float, ms: float) -> dict[str, Any]:
        shape = {"tokens": 2048, "dropout": dropout, "backward": True}
        return {"status": "ok", "backend": backend, "ms": ms, **shape}

    def speed(who: str, compiled: bool, rate: float, share: float = 0.5) -> dict[str, Any]:
        how = {"tokens": 512, "compiled": compiled}
        return {"status": "ok", "who": who, "tokens/s": rate, "share": share, **how}

    rows = {
        "attention": [
            attention(module.FLASH, 0.0, 3.0),
            attention("sdpa", 0.0, 9.0),
            attention("triton", 0.0, 4.0),
            attention(module.FLASH, 0.1, 3.0),
            attention("fused", 0.1, 6.0),
        ],
        "training": [speed("roberta_base", True, 120.0), speed("transformers", False, 100.0)],
    }
    found: Any = {step: dict(enumerate(values)) for step, values in rows.items()}
    found["waits"] = {"roberta_alibi, bf16": {"status": "ok", "waits": 1}}
    goals = module.goals(found)
    judged = [row["status"] for row in goals if row["status"] != "not measured"]
    assert judged == ["met", "not met", "met", "not met", "met"]
    assert (goals[0]["found"], goals[0]["backend"]) == (0.75, "triton")
