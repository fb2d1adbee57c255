"""Two processes that share a model write their parts of it; other numbers of processes go on from them as if undisturbed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from fairseq.checkpoint.reader import load_checked
from scripts import consolidate_checkpoint
from tests.integration.test_distributed import Run, assert_same, folder  # noqa: F401 (a fixture)
from tests.runs import DATA, run

SHARDED = ("--ddp-backend", "fully_sharded", "--use-sharded-state", "--store-ema")
SAVING = ("--save-interval-updates", 3, "--no-epoch-checkpoints")


@pytest.fixture(scope="module")
def two(folder: Path) -> Run:  # noqa: F811
    """Undisturbed."""
    return Run(folder, "two", 2, 2, *SHARDED, *SAVING)


def test_what_is_there(folder: Path, two: Run) -> None:  # noqa: F811
    names = ["checkpoint_1_3.pt", "checkpoint_1_3.shards", "checkpoint_1_6.pt", "checkpoint_1_6.shards"]
    assert sorted(path.name for path in (folder / "two").iterdir()) == [
        *names,
        "checkpoint_best.pt",
        "checkpoint_last.pt",
    ]
    assert "training on cpu in fp32 precision, 2 processes (fully_sharded)" in two.text
    parts = sorted((folder / "two" / "checkpoint_1_6.shards").glob("*.safetensors"))
    assert len(parts) == 2 and parts[0].stat().st_size == pytest.approx(parts[1].stat().st_size, rel=0.01)


@pytest.mark.parametrize("processes, flags", [(4, SHARDED), (1, SHARDED), (2, ("--store-ema",))])
def test_another_number_of_processes_goes_on(
    processes: int,
    flags: tuple[str, ...],
    folder: Path,  # noqa: F811
    two: Run,
) -> None:
    """Sharded or not."""
    name = f"on{processes}"
    saved = folder / "two" / "checkpoint_1_3.pt"
    resumed = Run(folder, name, processes, 4 // processes, "--restore-file", saved, *flags)
    assert_same(resumed, two, first=4)
    assert len(list((folder / name).glob("*.shards"))) == (processes == 4)


def test_a_damaged_part_falls_back(folder: Path, two: Run) -> None:  # noqa: F811
    """To the checkpoint before; the run then writes ordinary files, equal to what the parts are together."""
    again = folder / "again"
    shutil.copytree(folder / "two", again)
    part = sorted((again / "checkpoint_1_6.shards").glob("*.safetensors"))[1]
    data = bytearray(part.read_bytes())
    data[-5] ^= 8
    part.write_bytes(data)
    resumed = Run(folder, "again", 2, 2, "--ddp-backend", "fully_sharded", "--store-ema", *SAVING)
    assert "truncated or damaged" in resumed.text and "going on from the one before" in resumed.text
    assert_same(resumed, two, first=4)
    actual, expected = (load_checked(folder / name / "checkpoint_last.pt") for name in ("again", "two"))
    assert_identical(actual["model"], expected["model"])
    assert_identical(actual["last_optimizer_state"], expected["last_optimizer_state"])
    assert_identical(actual["extra_state"]["ema"], expected["extra_state"]["ema"])
    assert list(actual) == list(expected) and list(actual["extra_state"]) == list(expected["extra_state"])
    assert [path.name for path in again.glob("*.shards")] == ["checkpoint_1_3.shards"]


def assert_identical(actual: object, expected: object) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)  # type: ignore[arg-type]
    elif isinstance(expected, dict):
        assert isinstance(actual, dict) and list(actual) == list(expected)
        for key in expected:
            assert_identical(actual[key], expected[key])
    else:
        assert actual == expected


def test_other_commands_read_it(folder: Path, two: Run) -> None:  # noqa: F811
    """The directory, and the one file that is made of it."""
    shards, whole = folder / "two" / "checkpoint_1_6.shards", folder / "whole.pt"
    consolidate_checkpoint.main([str(folder / "two" / "checkpoint_last.pt"), str(whole)])
    flags = ("--cpu", "--batch-size", 4, "--log-format", "json", "--skip-invalid-size-inputs-valid-test")
    losses = []
    for source in (shards, whole):
        done = run("fairseq.cli.validate", DATA, *flags, "--user-dir", "watching", "--path", source, cwd=folder)
        assert done.returncode == 0, done.stderr
        losses += re.findall(r'"valid_loss": "([\d.]+)"', done.stdout + done.stderr)
    assert len(losses) == 2 and losses[0] == losses[1]
