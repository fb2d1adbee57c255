"""Jobs of a sweep share a process: what one run opens and draws does not reach the next, nor whoever started them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import DATA, REFERENCE, environment, json_lines

SWEEP = """
import logging, os, sys
import numpy as np, torch
from fairseq.cli import hydra_train
from fairseq.logging import progress

def state():
    loggers = [logging.getLogger(name) for name in ("fairseq.logging.progress_bar", "fairseq_cli.train")]
    random = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
    return [list(logger.handlers) for logger in loggers], dict(progress._writers), random, os.getcwd(), sys.argv

torch.manual_seed(5), np.random.seed(5)
before = state()
hydra_train.compose_and_run(sys.argv[1:], hydra_train.main)
assert state() == before
print("as it was found")
"""


def test_jobs_of_a_sweep_have_logs_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = (
        f"--config-dir {REFERENCE / 'baseline'} --config-name run -m task.data={DATA} common.seed=1,2 "
        "common.log_file=own.log common.tensorboard_logdir=tb optimization.max_update=2 checkpoint.no_save=true"
    ).split()
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "as it was found" in done.stdout
    [sweep] = tmp_path.glob("multirun/*/*")
    logs = []
    for job in ("0", "1"):
        text = (sweep / job / "own.log").read_text(encoding="utf-8")
        assert text.count("done training in") == 1 and f"'seed': {int(job) + 1}," in text
        logs.append([row["loss"] for row in json_lines(text) if "loss" in row])
        written = [len(list(tag.iterdir())) for tag in (sweep / job / "tb").iterdir()]
        assert written and set(written) == {1}
    assert len(logs[0]) == len(logs[1]) > 0 and logs[0] != logs[1]
    assert not (tmp_path / "own.log").exists() and not (tmp_path / "tb").exists()
