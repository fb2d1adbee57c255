"""Preprocessing that is killed: nothing half, nothing mixed, nobody left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairseq.cli import preprocess, preprocess_task
from fairseq.dataclass.parser import get_preprocessing_parser
from tests.runs import environment

WORKERS = """
import os, sys, time
from fairseq.data.pool import map_in_order

def work(item):
    os.write(1, b"%d\\n" % os.getpid())  # at once, so that lines stay whole
    time.sleep(item)

list(map_in_order(work, [1, 1, 60], 3))
"""


def make(folder: Path, text: str) -> Path:
    source = folder / "text"
    source.write_text(text)
    words = ["--only-source", "--trainpref", str(source), "--validpref", str(source), "--destdir", str(folder / "bin")]
    preprocess.main(get_preprocessing_parser().parse_args(words))
    return folder / "bin"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(8))
def test_new_files_are_never_read_with_old_ones(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make(tmp_path, "a b c\n")
    (out / "dict.txt").unlink()  # else it is in the way
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    replace, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        if Path(target).parent != out:  # not yet for others to see
            return replace(source, target)
        if len(calls) == moment:
            raise Killed
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with contextlib.suppress(Killed):
            make(tmp_path, "d d e f g\n")
    there = {path.name for path in out.iterdir()}
    new = {Path(target).name for target in calls}
    for split in ("train", "valid"):
        if new and f"{split}.idx" in there:  # it can be read: then all is new
            assert {f"{split}.idx", f"{split}.bin", "dict.txt"} <= new
            assert (out / f"{split}.bin").read_bytes() != before[f"{split}.bin"]


def make_task(folder: Path, word: str) -> Path:
    (folder / "dict.txt").write_text(f"{word} 1\n")
    for name in ("train.raw.input0", "train.raw.input1", "train.label"):
        (folder / name).write_text(f"{word}\n")
    flags = {"--task": "plain", "--data-dir": folder, "--dest": folder / "bin", "--srcdict": folder / "dict.txt"}
    words = ["--overwrite", *(str(word) for pair in flags.items() for word in pair)]
    preprocess_task.main(preprocess_task.get_parser().parse_args(words))
    return folder / "bin"


@pytest.mark.parametrize("moment", range(6))
def test_folders_of_a_task_belong_together(moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make_task(tmp_path, "a")
    replace, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        if out in (Path(target).parent, Path(source).parent):
            calls.append(target)
            if len(calls) > moment:
                raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(Killed):
            make_task(tmp_path, "b")
    assert len(calls) == moment + 1
    there = {path.name: (path / "dict.txt").read_text()[0] for path in out.iterdir()}
    assert "input0" not in there or set(there.values()) == {"a"} and len(there) == 3
    assert {(path / "dict.txt").read_text()[0] for path in make_task(tmp_path, "b").iterdir()} == {"b"}


def test_what_a_killed_run_left_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="fairseq_cli.preprocess")
    (tmp_path / "bin" / ".preprocess-old").mkdir(parents=True)
    assert sorted(path.name for path in make(tmp_path, "a b\n").iterdir()) == [
        *("dict.txt", "manifest.json", "preprocess.log", "train.bin", "train.idx", "valid.bin", "valid.idx")
    ]
    assert "removed" in caplog.text and ".preprocess-old, which a run that was killed had left" in caplog.text
    shutil.rmtree(tmp_path / "bin")
    (tmp_path / ".bin.preprocess-old" / "new").mkdir(parents=True)
    (tmp_path / ".bin-2.preprocess-old").mkdir()  # of another one
    make_task(tmp_path, "a")
    assert ".bin.preprocess-old, which a run that was killed had left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob(".*")] == [".bin-2.preprocess-old"]


def test_workers_end_with_their_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", WORKERS], env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()) for _ in range(3)}
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 20
    while any(_is_there(worker) for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
