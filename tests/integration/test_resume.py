"""Interrupted and resumed runs give exactly what the uninterrupted run gives."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import DATA, TINY_FLAGS, command, environment, train, train_inner, valid, without_clocks

FLAGS = [*TINY_FLAGS, "--save-interval-updates", 2, "--keep-interval-updates", 2, "--dropout", 0.1]


def losses(text: str) -> dict[str, dict[str, object]]:
    return {key: without_clocks(row) for key, row in train_inner(text).items()}


def kill_after(update: int, folder: Path, *flags: object) -> str:
    """Start a run and SIGKILL it once it has printed ``update``; returns what it printed."""
    process = subprocess.Popen(
        command("fairseq.cli.train", DATA, *FLAGS, *flags),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if f'"num_updates": "{update}"' in line and '"loss"' in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    return "".join(seen)


BIGS = tuple("--bf16 --token-mixer bigs --channel-mixer none --bigs-num-ssm 4 --store-ema --ema-fp32".split())
CRAMMING = ("--mask-exact", "--no-prepend-bos", "--update-freq", "4", "--batch-ramp-updates", "8")


@pytest.mark.parametrize(
    "extra", [(), ("--bf16",), ("--amp",), CRAMMING, BIGS], ids=["fp32", "bf16", "amp", "cramming", "bigs"]
)
def test_killed_run_continues_to_the_last_bit(extra: tuple[str, ...], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    uninterrupted = train(DATA, *FLAGS, "--max-update", 9, *extra, cwd=whole).stdout
    kill_after(5, broken, "--max-update", 9, *extra)
    resumed = train(DATA, *FLAGS, "--max-update", 9, *extra, cwd=broken).stdout
    expected, actual = losses(uninterrupted), losses(resumed)
    assert "9" in actual and "1" not in actual
    for update, row in actual.items():
        assert row == expected[update]
    assert without_clocks(valid(resumed)["9"]) == without_clocks(valid(uninterrupted)["9"])
    a = torch.load(whole / "checkpoints/checkpoint_last.pt", weights_only=True)
    b = torch.load(broken / "checkpoints/checkpoint_last.pt", weights_only=True)
    for name in a["model"]:
        assert torch.equal(a["model"][name], b["model"][name]), name
    for index, entry in a["last_optimizer_state"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["last_optimizer_state"]["state"][index][name]))
    assert ("ema" in a["extra_state"]) == ("--store-ema" in extra)
    for name, value in a["extra_state"].get("ema", {}).items():
        assert torch.equal(value, b["extra_state"]["ema"][name]), name
        assert value.dtype == torch.float32 or "_ssm." not in name, name


def test_resume_across_an_epoch_border_and_with_workers(tmp_path: Path) -> None:
    """Two short epochs; the second run starts from the end of the first one's first epoch."""
    flags = [*TINY_FLAGS, "--dropout", 0.1, "--update-freq", "8,4", "--num-workers", 1, "--max-epoch", 2]
    whole = train(DATA, *flags, "--save-dir", "whole", cwd=tmp_path).stdout
    resumed = train(
        DATA, *flags, "--save-dir", "again", "--restore-file", tmp_path / "whole" / "checkpoint1.pt", cwd=tmp_path
    ).stdout
    expected, actual = losses(whole), losses(resumed)
    assert len(actual) >= 20
    assert actual == {update: expected[update] for update in actual}


RECIPES = [
    "--optimizer nag --momentum 0.9 --lr-scheduler reduce_lr_on_plateau --lr-threshold 0.9 --lr-patience 1 --lr 0.01",
    "--optimizer adafactor --beta1 0.9 --lr-scheduler manual --epoch2lr {'1':0.01,'3':0.001} --lr 0.005 --bf16",
    "--optimizer lamb --weight-decay 0.01 --lr-scheduler triangular --max-lr 0.01 --lr-period-updates 8 --lr 0.001",
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.split()[1])
def test_recipes_go_on_from_the_end_of_an_epoch(recipe: str, tmp_path: Path) -> None:
    """The checkpoint of an epoch is written before its validation loss reaches the schedule."""
    usual = " ".join(TINY_FLAGS)
    start, end = usual.index("--optimizer"), usual.index("--clip-norm")
    flags = (usual[:start] + usual[end : usual.index("--lr-scheduler")]).split()
    flags += [*recipe.split(), "--update-freq", "16", "--max-epoch", "4"]
    train(DATA, *flags, "--save-dir", "whole", cwd=tmp_path)
    stored = tmp_path / "whole" / "checkpoint2.pt"
    train(DATA, *flags, "--save-dir", "again", "--restore-file", stored, cwd=tmp_path)
    a, b = (torch.load(tmp_path / name / "checkpoint4.pt", weights_only=True) for name in ("whole", "again"))
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    assert_same(a["last_optimizer_state"], b["last_optimizer_state"])
    assert_same(a["optimizer_history"][-1], b["optimizer_history"][-1])


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b
