"""A sweep through Hydra's submitit launcher: on this machine, and on a SLURM that stops one of its jobs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import fake_slurm
from tests.documents import ROOT, fenced
from tests.runs import DATA, command, environment, train_inner

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


DOCUMENTED = "\n".join(fenced(ROOT / "docs" / "distributed.md", "yaml"))
LOCAL = """\
defaults: [base, override hydra/launcher: submitit_local]
hydra: {mode: MULTIRUN, launcher: {timeout_min: 60}}
"""


def sweep(folder: Path, text: str, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start the sweep of the YAML ``text`` for the small model of the tests, with other settings as ``words`` say."""
    shutil.copy(ROOT / "tests" / "data" / "config" / "baseline.yaml", folder / "base.yaml")
    (folder / "sweep.yaml").write_text(text)
    given = ("--config-dir", ".", "--config-name", "sweep", f"task.data={DATA}", "hydra.sweep.dir=sweep", *words)
    return subprocess.Popen(
        command("fairseq.cli.hydra_train", *given),
        cwd=folder,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors


def log_of(folder: Path, job: int) -> Path:
    return folder / "sweep" / str(job) / "hydra_train.log"


def test_on_this_machine(tmp_path: Path) -> None:
    finish(sweep(tmp_path, LOCAL, "common.seed=1,2", "optimization.max_update=2"))
    first, second = (train_inner(log_of(tmp_path, job).read_text()) for job in (0, 1))
    assert set(first) == set(second) == {"1", "2"} and first["1"]["loss"] != second["1"]["loss"]


@pytest.mark.slow
def test_a_job_that_slurm_stops_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Two tasks for each job, as on two machines; the first job gets the signal that comes before the time is over."""
    slurm, log = tmp_path / "slurm", log_of(tmp_path, 0)
    process = sweep(
        tmp_path,
        DOCUMENTED.replace("optimization.lr:", "#"),  # two jobs are enough
        "optimization.max_update=40",
        **fake_slurm.install(slurm),
    )
    while process.poll() is None and not (log.exists() and '"num_updates": "3"' in log.read_text()):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    (tasks,) = slurm.glob("tasks.*_0")
    for number in tasks.read_text().split():
        os.kill(int(number), signal.SIGUSR2)
    finish(process)
    text = log.read_text()
    assert text.count("SIGUSR2: saving after") == text.count("done training") == 1
    assert text.count('"loss": ') == 40 and set(train_inner(text)) == {str(update) for update in range(1, 41)}
    assert len(train_inner(log_of(tmp_path, 1).read_text())) == 40
