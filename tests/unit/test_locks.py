"""A directory has one owner; the lock goes with it, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from fairseq import locks
from fairseq.checkpoint.atomic import temporary_name
from fairseq.cli import preprocess
from fairseq.dataclass.parser import get_preprocessing_parser
from fairseq.errors import ConfigError
from fairseq.locks import claimed
from tests.runs import DATA, TINY_FLAGS, run


def hold(directory, ready):
    with claimed(directory, "fairseq-train", ""):
        ready.send(True)
        time.sleep(60)


@pytest.fixture
def owner(tmp_path):
    """Another process that holds ``tmp_path``."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv()
    yield process
    process.kill()
    process.join()


def refused(directory, message, **options):
    with pytest.raises(ConfigError, match=message), claimed(directory, "another", "wait", **options):
        pass


def test_the_owner_is_named_at_once(owner, tmp_path):
    start = time.monotonic()
    refused(tmp_path, rf"fairseq-train \(process {owner.pid} on .*\) works in .*; wait$")
    assert time.monotonic() - start < 5


def test_the_lock_ends_with_a_killed_owner(owner, tmp_path):
    owner.kill()
    owner.join()
    with claimed(tmp_path, "fairseq-train", "wait"):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert os.listdir(tmp_path) == []


def test_children_of_a_killed_owner_may_end(tmp_path, monkeypatch):
    """One that does not holds the directory."""
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    with claimed(tmp_path, "fairseq-train", "wait"):
        (tmp_path / ".lock").write_text(f"fairseq-train (process {2**22 + 1} on {locks.socket.gethostname()})\n")
        with pytest.raises(ConfigError, match="works in"), claimed(tmp_path, "another", "wait"):
            pass


def test_beside_a_directory_that_is_not_there_yet(tmp_path):
    with claimed(tmp_path / "new", "fairseq-preprocess-task", "wait", beside=True):
        assert os.listdir(tmp_path) == [".new.lock"]
        refused(tmp_path / "new", r"works in .*new; wait", beside=True)
    assert os.listdir(tmp_path) == []


def test_one_after_the_other(tmp_path):
    for _ in range(3):
        with claimed(tmp_path, "fairseq-train", "wait") as descriptor:
            assert os.fstat(descriptor).st_nlink == 1


def test_commands_are_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("a b c\n")
    words = ["--only-source", "--trainpref", str(text), "--destdir", str(tmp_path / "bin")]
    args = get_preprocessing_parser().parse_args(words)
    with claimed(tmp_path / "bin", "fairseq-preprocess", ""), pytest.raises(ConfigError, match="another --destdir"):
        preprocess.main(args)
    preprocess.main(args)
    assert sorted(os.listdir(tmp_path / "bin")) == [
        "dict.txt",
        "manifest.json",
        "preprocess.log",
        "train.bin",
        "train.idx",
    ]
    with claimed(tmp_path / "save", "fairseq-train", ""):
        # The owner may be in another container, whose processes nobody knows here.
        unfinished = Path(
            temporary_name(str(tmp_path / "save" / "checkpoint_last.pt")).replace(f"{os.getpid()}", "4194305")
        )
        unfinished.touch()
        done = run("fairseq.cli.train", DATA, *TINY_FLAGS, "--save-dir", tmp_path / "save", cwd=tmp_path)
    assert unfinished.exists()
    assert done.returncode == 2 and "choose another --save-dir" in done.stderr and "Traceback" not in done.stderr
