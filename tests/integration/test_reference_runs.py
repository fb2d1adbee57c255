"""Short runs of the original program, repeated from configuration and seed alone, and resumed from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.runs import DATA, REFERENCE, TINY_FLAGS, assert_printed_close, run, train, train_inner, valid


def compare(log: Path, output: str, first: int = 1, last: int = 12) -> None:
    """A perplexity above a million (2 to the loss) has more digits of the loss than anyone computes alike."""
    reference = json.loads(
        log.read_text(), object_hook=lambda row: {k: v for k, v in row.items() if "e+" not in str(v)}
    )
    rows = train_inner(output)
    expected = [row for row in reference["train_inner"] if int(row["num_updates"]) >= first]
    assert list(rows) == [row["num_updates"] for row in expected]
    for row in expected:
        if int(row["num_updates"]) <= last:
            assert_printed_close(row, rows[row["num_updates"]])
    checked = valid(output)
    for row in reference["valid"]:
        if first <= int(row["valid_num_updates"]) <= last:
            assert_printed_close(row, checked[row["valid_num_updates"]])


@pytest.mark.parametrize(
    "name",
    [
        "baseline",
        "sinusoidal",
        "alibi",
        "zero_clap",
        pytest.param("alibi_asymmetrical", marks=pytest.mark.slow),
        pytest.param("learned_clap", marks=pytest.mark.slow),
        pytest.param("learned_clap_unnormalized", marks=pytest.mark.slow),
    ],
)
def test_yaml_run_prints_the_reference_numbers(name: str, tmp_path: Path) -> None:
    done = run(
        "fairseq.cli.hydra_train",
        "--config-dir",
        REFERENCE / name,
        "--config-name",
        "run",
        f"task.data={DATA}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # With a perplexity of 10^11 at its start, zero_clap enlarges differences of rounding until they show.
    compare(REFERENCE / name / "log.json", done.stdout, last=9 if name == "zero_clap" else 12)
    if name == "baseline":
        check_layout(next(tmp_path.glob("outputs/*/*/checkpoints/checkpoint_1_12.pt")))


def check_layout(checkpoint: Path) -> None:
    """The file has the keys, types and shapes that the original wrote for this run."""
    state = torch.load(checkpoint, weights_only=True)
    expected = json.loads((REFERENCE / "baseline" / "checkpoint_schema.json").read_text())
    # The reference run was resumed twice and started from given weights; everything else must agree.
    expected["optimizer_history"] = expected["optimizer_history"][:1] + expected["optimizer_history"][-1:]
    expected["cfg"]["checkpoint"]["finetune_from_model"] = "NoneType"
    actual = describe(state)
    assert list(actual) == list(expected)
    for section in ("cfg", "model", "last_optimizer_state", "task_state", "criterion"):
        assert actual[section] == expected[section], section
    assert actual["optimizer_history"][1:] == expected["optimizer_history"][1:]
    meters = {
        name: [[p, key, kind, {k: type(v).__name__ for k, v in values.items()}] for p, key, kind, values in entries]
        for name, entries in state["extra_state"]["metrics"].items()
    }
    wanted = expected["extra_state"].pop("metrics")
    assert {name: [row[:3] for row in rows] for name, rows in meters.items()} == {
        name: [row[:3] for row in rows] for name, rows in wanted.items()
    }
    del actual["extra_state"]["metrics"]
    assert actual["extra_state"] == expected["extra_state"]


def describe(value: object) -> object:
    """Keys, types and shapes of a checkpoint."""
    if isinstance(value, torch.Tensor):
        return [str(value.dtype).replace("torch.", ""), list(value.shape)]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        nested = len(value) <= 6 and any(isinstance(item, (dict, list, tuple)) for item in value)
        return [type(value).__name__, *map(describe, value)] if nested else type(value).__name__
    return type(value).__name__


def test_flags_run_prints_the_reference_numbers(tmp_path: Path) -> None:
    done = train(DATA, *TINY_FLAGS, "--max-update", 6, cwd=tmp_path)
    compare(REFERENCE / "flags" / "log.json", done.stdout)
    assert (tmp_path / "checkpoints" / "checkpoint_last.pt").is_file()


def test_checkpoint_of_the_original_resumes(tmp_path: Path) -> None:
    restore = REFERENCE / "baseline" / "checkpoint_1_6.pt"
    done = train(DATA, *TINY_FLAGS, "--max-update", 12, "--restore-file", restore, cwd=tmp_path)
    compare(REFERENCE / "baseline" / "log.json", done.stdout, first=7)
