"""What survives a full disk, an interrupt and a kill while a checkpoint is being written."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fairseq.checkpoint import atomic
from fairseq.checkpoint.atomic import atomic_copy, atomic_save, remove_leftovers, temporary_name
from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.store import CheckpointStore, verify_checkpoint_directory
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


def store(tmp_path, **options) -> CheckpointStore:
    cfg = CheckpointConfig()
    for key, value in {"save_dir": str(tmp_path / "ckpt"), **options}.items():
        assert hasattr(cfg, key)
        setattr(cfg, key, value)
    return CheckpointStore(cfg)


def state(value=0.0, size=4):
    return {"model": {"w": torch.full((size,), value)}, "extra_state": {"val_loss": value}}


def files(tmp_path):
    return sorted(os.listdir(tmp_path / "ckpt"))


# -- failures ---------------------------------------------------------------------------------------------------------


class FullDisk:
    """A file whose disk is full after ``room`` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 100, 3000, 10_000])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, room, asynchronous):
    s = store(tmp_path, write_checkpoints_asynchronously=asynchronous, no_epoch_checkpoints=True)
    s.save(state(1.0), 1, 10, True, None)
    s.wait()
    monkeypatch.setattr(atomic, "open", lambda *a, **k: FullDisk(io.open(*a, **k), room), raising=False)  # noqa: SIM115, UP020
    with pytest.raises(CheckpointError, match=r"checkpoint_last\.pt: No space left on device; .*untouched"):
        s.save(state(2.0, size=5000), 2, 20, True, None)
        s.wait()
    monkeypatch.undo()
    assert files(tmp_path) == ["checkpoint_last.pt"]
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["model"]["w"][0] == 1.0
    s.save(state(3.0), 3, 30, True, None)  # and the run may go on
    s.wait()
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["model"]["w"][0] == 3.0


def test_full_disk_while_copying(tmp_path, monkeypatch):
    s = store(tmp_path)
    s.save(state(1.0), 1, 10, True, None)

    def fail(source, path):
        raise CheckpointError(f"cannot write checkpoint {path}")

    monkeypatch.setattr("fairseq.checkpoint.store.atomic_copy", fail)
    with pytest.raises(CheckpointError, match="checkpoint_last"):
        s.save(state(2.0), 2, 20, True, None)
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["model"]["w"][0] == 1.0
    assert load(tmp_path / "ckpt/checkpoint2.pt")["model"]["w"][0] == 2.0


def test_limit_of_the_system(tmp_path):
    """A real failing write: the file size limit of the process."""
    code = f"""
import resource, sys, torch
from fairseq.checkpoint.atomic import atomic_save, atomic_copy
from fairseq.errors import CheckpointError
path = {str(tmp_path / "a.pt")!r}
atomic_save({{"w": torch.zeros(10)}}, path)
torch.save({{"w": torch.zeros(100_000)}}, path + ".big")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (lambda: atomic_save({{"w": torch.ones(100_000)}}, path), lambda: atomic_copy(path + ".big", path)):
    try:
        write()
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout.count("a.pt: File too large") == 2, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.pt.big"]
    assert torch.equal(load(tmp_path / "a.pt")["w"], torch.zeros(10))


def test_other_errors_and_interrupts_leave_nothing_behind(tmp_path):
    def interrupted(file):
        file.write(b"x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(tmp_path / "a.pt", interrupted)
    with pytest.raises(Exception, match="pickle"):
        atomic_save({"x": lambda: 0}, tmp_path / "a.pt")
    assert os.listdir(tmp_path) == []
    with pytest.raises(CheckpointError, match="No such file or directory"):
        atomic_save({}, tmp_path / "missing/a.pt")


def test_a_flaky_network_disk_is_tried_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(atomic.time, "sleep", calls.append)

    def write(file):
        file.write(b"x")
        if len(calls) < 2:
            raise OSError(errno.EIO, "Input/output error")

    atomic.write_atomically(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"x" and calls == [1, 2]


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_copies_are_exact(tmp_path, monkeypatch, size, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(atomic.os, "copy_file_range", None, raising=False)
        monkeypatch.delattr(atomic.os, "copy_file_range")
    content = random.Random(size).randbytes(size)
    (tmp_path / "a").write_bytes(content)
    atomic_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_save_directory_is_made_and_a_file_is_refused(tmp_path):
    verify_checkpoint_directory(str(tmp_path / "a/b"))
    assert os.listdir(tmp_path / "a/b") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file.*choose another save_dir"):
        verify_checkpoint_directory(str(tmp_path / "file"))


def test_leftovers_of_dead_processes_are_removed(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = []
    for process in (dead.pid, os.getpid(), os.getppid()):
        with monkeypatch.context() as patch:
            patch.setattr(atomic.os, "getpid", lambda process=process: process)
            names.append(temporary_name(str(tmp_path / "checkpoint_last.pt")))
    names += [str(tmp_path / "checkpoint_last.pt.otherhost-1.tmp"), str(tmp_path / "notes.tmp")]
    for name in names:
        Path(name).touch()
    remove_leftovers(str(tmp_path))
    assert [os.path.exists(name) for name in names] == [False, False, True, True, True]


def test_crash_file(tmp_path, caplog):
    s = store(tmp_path)
    s.save_crash(state(1.0))
    assert (tmp_path / "ckpt/crash.pt").exists()
    assert load(tmp_path / "ckpt/crash.pt")["model"]["w"][0] == 1.0
    (tmp_path / "file").touch()
    store(tmp_path, save_dir=str(tmp_path / "file/x")).save_crash(state())


# -- kills ------------------------------------------------------------------------------------------------------------

KILLS = r"""
import os, random, signal, sys, time, torch
from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.store import CheckpointStore, checkpoint_paths, last_name, update_pattern
from fairseq.dataclass.configs import CheckpointConfig

torch.set_num_threads(1)  # the writers are forked
cfg = CheckpointConfig()
cfg.save_dir, cfg.save_interval_updates, cfg.keep_interval_updates = sys.argv[1], 1, 2


def write_for_ever(n, pipe):
    store = CheckpointStore(cfg)
    store.verify_directory()
    store.clear_directory()
    while True:
        n += 1
        state = {"model": {"w": torch.full((200_000,), float(n))}, "extra_state": {"n": n}}
        store.save(state, 1, n, False, None)
        os.write(pipe, f"{n}\n".encode())


chance, done = random.Random(7), 0
for _ in range(15):
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:
        write_for_ever(done, writing)
    os.close(writing)
    pipe = os.fdopen(reading)
    assert pipe.readline()
    time.sleep(chance.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    reported = [int(line) for line in pipe if line.endswith("\n")]
    last = load(os.path.join(cfg.save_dir, last_name()))
    n = last["extra_state"]["n"]
    assert n >= max([done + 1, *reported]), (n, done, reported)  # what was reported as saved is there
    assert torch.equal(last["model"]["w"], torch.full((200_000,), float(n)))
    for path in checkpoint_paths(cfg.save_dir, update_pattern()):
        load(path)
    done = n
print("survived", done)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "ckpt")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("survived"), done.stderr
    store(tmp_path).clear_directory()
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
