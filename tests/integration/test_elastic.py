"""Two machines of which one goes: simulated by two agents of torchrun on one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairseq.distributed.placement import free_port
from tests.runs import DATA, TINY_FLAGS, environment, train, train_inner

FLAGS = [*TINY_FLAGS, "--batches-per-update", 4, "--max-update", 10, "--disable-validation", "--dropout", 0]


def descendants(process: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == process:
            child = int(stat.parent.name)
            children += [child, *descendants(child)]
    return children


def agent(port: int, folder: Path, name: str, host: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """One machine; ``host`` keeps what the agents know of each other, and is not the one that goes."""
    log = folder / f"{name}.log"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "x", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", *rendezvous]
    words += ["--rdzv-conf", f"last_call_timeout=3,is_host={host}", "--max-restarts", "3", "--monitor-interval", "0.5"]
    words += ["-m", "fairseq.cli.train", DATA, *FLAGS, "--save-dir", "broken", "--save-interval-updates", 2]
    with log.open("wb") as file:
        return subprocess.Popen(
            list(map(str, words)),
            cwd=folder,
            env=environment(PYTHONUNBUFFERED="1"),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ), log


@pytest.mark.slow
def test_the_job_goes_on_without_a_machine(tmp_path: Path) -> None:
    whole = train_inner(train(DATA, *FLAGS, "--save-dir", "whole", cwd=tmp_path).stdout)
    port = free_port()
    (first, log), (second, other) = agent(port, tmp_path, "first", True), agent(port, tmp_path, "second", False)
    try:
        end = time.monotonic() + 300
        while '"num_updates": "5"' not in log.read_text() + other.read_text():
            assert time.monotonic() < end and first.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        for process in [*descendants(second.pid), second.pid]:
            os.kill(process, signal.SIGKILL)
        assert first.wait(300) == 0, log.read_text()[-5000:]
    finally:
        for process in (first, second):
            for child in [*descendants(process.pid), process.pid]:
                if process.poll() is None:
                    os.kill(child, signal.SIGKILL)
            process.wait()
    text = log.read_text()
    assert "Loaded checkpoint broken/checkpoint_" in text
    rows = train_inner(text)
    assert "10" in rows
    for update, row in rows.items():
        assert float(row["loss"]) == pytest.approx(float(whole[update]["loss"]), rel=2e-5)
