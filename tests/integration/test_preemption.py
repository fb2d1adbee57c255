"""A run that is told to end saves first and says so by its status; the same command goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.runs import DATA, TINY_FLAGS, command, environment, run, train, train_inner, valid, without_clocks

INTERRUPTED = 75
FLAGS = [*TINY_FLAGS, "--dropout", 0.1, "--save-interval-updates", 2, "--max-update", 6, "--no-epoch-checkpoints"]


def losses(text: str) -> dict[str, dict[str, object]]:
    return {key: without_clocks(row) for key, row in train_inner(text).items()}


def interrupt(number: int, at: str, cwd: Path, *flags: object, group: bool = False) -> str:
    """Start a run, send it a signal when a line contains ``at``; returns what it printed. It must end with the status."""
    process = subprocess.Popen(
        command("fairseq.cli.train", DATA, *FLAGS, *flags),
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if at in line:
            (os.killpg if group else os.kill)(process.pid, number)
            at = "nothing more"
    process.wait(60)
    text = "".join(seen)
    assert process.returncode == INTERRUPTED, text[-3000:]
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(DATA, *FLAGS, "--no-save", cwd=tmp_path_factory.mktemp("whole")).stdout


def test_saved_at_the_next_step_and_going_on(whole: str, tmp_path: Path) -> None:
    """Its data workers get the signal too; then the newest checkpoint is damaged, and the one before serves."""
    text = interrupt(signal.SIGTERM, '"num_updates": "3"', tmp_path, "--num-workers", 1, group=True)
    assert "SIGTERM: saving after" in text and '"num_updates": "6"' not in text
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:-5000])
    done = run("fairseq.cli.train", DATA, *FLAGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from the one before, checkpoints/checkpoint_" in done.stdout
    expected, actual = losses(whole), losses(done.stdout)
    assert "6" in actual and "1" not in actual
    assert actual == {update: expected[update] for update in actual}
    assert without_clocks(valid(done.stdout)["6"]) == without_clocks(valid(whole)["6"])


def test_two_processes_agree_in_the_middle_of_a_validation(tmp_path: Path) -> None:
    flags = ("--distributed-world-size", 2, "--update-freq", 1, "--dropout", 0)
    text = interrupt(signal.SIGUSR1, "begin validation", tmp_path, *flags)
    assert "SIGUSR1: saving after 2 updates" in text and "valid_loss" not in text
    done = train(DATA, *FLAGS, "--max-update", 3, "--update-freq", 2, "--dropout", 0, cwd=tmp_path).stdout
    assert list(losses(done)) == ["3"]
