"""A save that was cut short between its files is finished by the run that goes on from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.checkpoint.interrupted import finish_save
from fairseq.checkpoint.store import CheckpointStore
from fairseq.dataclass.configs import CheckpointConfig


def store(tmp_path: Path, **options: Any) -> CheckpointStore:
    cfg = CheckpointConfig(save_dir=str(tmp_path / "c"), save_interval_updates=2)
    for key, value in options.items():
        setattr(cfg, key, value)
    return CheckpointStore(cfg)


def state(updates: int, value: float | None) -> dict[str, Any]:
    position = {"version": 2, "epoch": 1, "iterations_in_epoch": updates, "shuffle": True}
    entry = {"criterion_name": "c", "optimizer_name": "o", "lr_scheduler_state": {}, "num_updates": updates}
    return {
        "args": None,
        "cfg": None,
        "model": {"w": torch.full((3,), float(updates))},
        "optimizer_history": [entry],
        "last_optimizer_state": {},
        "task_state": {},
        "extra_state": {"train_iterator": position, "val_loss": value},
    }


def contents(tmp_path: Path) -> dict[str, float]:
    return {path.name: float(torch.load(path)["model"]["w"][0]) for path in sorted((tmp_path / "c").iterdir())}


def saved(tmp_path: Path, files: int, value: float | None, **options: Any) -> dict[str, float]:
    """What is there when a second save was killed after ``files`` of its files, and a run went on from the first of them."""
    run = store(tmp_path, **options)
    run.save(state(2, 5.0), 1, 2, False, 5.0)
    for path in (tmp_path / "c").iterdir():
        os.utime(path, (1, 1))
    before = contents(tmp_path)
    run.save(state(4, value), 1, 4, False, value)
    after = contents(tmp_path)
    for name in in_order([name for name in after if after[name] == 4])[files:]:
        (tmp_path / "c" / name).unlink()
        if name in before:
            torch.save(state(2, 5.0), tmp_path / "c" / name)
            os.utime(tmp_path / "c" / name, (1, 1))
    resumed = store(tmp_path, **options)
    finish_save(resumed, str(tmp_path / "c" / "checkpoint_1_4.pt"))
    assert contents(tmp_path) == after
    return after


def in_order(names: list[str]) -> list[str]:
    starts = ["checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint.best_", "checkpoint_last.pt"]
    return sorted(names, key=lambda name: next(i for i, start in enumerate(starts) if name.startswith(start)))


@pytest.mark.parametrize("files", [1, 2, 3])
@pytest.mark.parametrize(("value", "best"), [(4.0, 4), (6.0, 2), (None, 2)])
@pytest.mark.parametrize("kept", [0, 2])
def test_the_remaining_names(files: int, value: float | None, best: int, kept: int, tmp_path: Path) -> None:
    found = saved(tmp_path, files, value, keep_best_checkpoints=kept)
    assert found["checkpoint_last.pt"] == 4 and found["checkpoint_best.pt"] == best
    assert sum(name.startswith("checkpoint.best_") for name in found) == (0 if not kept else 2 if value else 1)


def test_nothing_is_done_for_a_whole_save_or_a_damaged_file(tmp_path: Path) -> None:
    run = store(tmp_path)
    run.save(state(2, 5.0), 1, 2, False, 5.0)
    last = tmp_path / "c" / "checkpoint_last.pt"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    for name in ("checkpoint_last.pt", "checkpoint_1_2.pt"):
        finish_save(store(tmp_path), str(tmp_path / "c" / name))
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    damaged = tmp_path / "c" / "checkpoint_1_4.pt"
    damaged.write_bytes(last.read_bytes()[:-200])
    finish_save(store(tmp_path), str(damaged))
    assert float(torch.load(last)["model"]["w"][0]) == 2
