"""Memory and threads of the commands: what is set, what is left alone, and that results do not depend on it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq.cli import process

FAULTS = """
import resource
from fairseq.cli import process
process.tune_allocator()
import numpy
def step(): return [numpy.ones(3_000_000) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(process.describe_allocator())
"""


def tuned(**env: str) -> tuple[int, str]:
    """Page faults of three rounds that take and free 96 MB, and what the allocator says of itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "FAIRSEQ_"))}
    run = subprocess.run([sys.executable, "-c", FAULTS], env={**clean, **env}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    faults, words = run.stdout.strip().split("\n")
    return int(faults), words


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again():
    faults, words = tuned()
    assert words.startswith("glibc, freed memory is kept") and faults < 2000
    default, words = tuned(FAIRSEQ_MALLOC="default")
    assert "FAIRSEQ_MALLOC=default" in words and default > 5 * faults


@pytest.mark.parametrize(
    "name, value",
    [("MALLOC_ARENA_MAX", "2"), ("LD_PRELOAD", "libjemalloc.so.2"), ("GLIBC_TUNABLES", "glibc.malloc.x=1")],
)
def test_settings_of_the_user_stay(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FAIRSEQ_MALLOC", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv(name, value)
    assert "set by" in (process._left_alone() or "")


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FAIRSEQ_MALLOC", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert process._left_alone() == "not glibc"


@pytest.mark.parametrize(
    "text, processors", [("max 100000", None), ("150000 100000", 2), ("400000 100000", 4), ("1 100000", 1)]
)
def test_share_of_a_control_group(tmp_path: Path, text: str, processors: int | None):
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000\n")
    (tmp_path / "outer" / "cpu.max").write_text(text + "\n")
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/elsewhere\n0::/outer/inner\n")
    assert process.quota(tmp_path, own) == processors


def test_share_by_the_first_version(tmp_path: Path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert process.quota(tmp_path, tmp_path / "missing") == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert process.quota(tmp_path, tmp_path / "missing") is None


def test_threads_follow_the_share_unless_the_user_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "quota", lambda: 2)
    monkeypatch.setattr(process, "affinity", lambda: 8)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    process.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    process.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_waiting_follows_the_user_first(monkeypatch: pytest.MonkeyPatch):
    for name in ("FAIRSEQ_WAIT", *process._WAITING):
        monkeypatch.setenv(name, "")  # restored in the end, whatever the code sets
        monkeypatch.delenv(name)
    process.choose_waiting()
    assert "OMP_WAIT_POLICY" not in os.environ and process.describe_waiting() == "as OpenMP does by default"
    monkeypatch.setenv("FAIRSEQ_WAIT", "passive")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    process.choose_waiting()
    assert process.describe_waiting() == "GOMP_SPINCOUNT=7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    process.choose_waiting()
    assert process.describe_waiting() == "OMP_WAIT_POLICY=PASSIVE"
