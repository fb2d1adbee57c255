"""The quickstart, shortened to a few updates: every step runs, says what it is worth, and deletes nothing foreign."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import ROOT

QUICKSTART = ROOT / "examples" / "quickstart"


def test_documents_are_whole_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import corpus

    books = sorted((QUICKSTART / "books").glob("*.txt"))
    kept, held_out = corpus.write_split(books, tmp_path / "train.txt", tmp_path / "valid.txt")
    assert kept > 8 * held_out > 0
    train, valid = ((tmp_path / name).read_text(encoding="utf-8") for name in ("train.txt", "valid.txt"))
    assert train.endswith("\n\n") and train.count("\n\n") == kept and valid.count("\n\n") == held_out
    shared = set(valid.split("\n\n")) & set(train.split("\n\n"))
    assert shared == {""}
    assert 750_000 < len(train) + len(valid) < 1_100_000


def quickstart(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(QUICKSTART / "run.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_cut_short_then_continued_then_shown(tmp_path: Path):
    """Three runs in one directory: time is up after an update; the next one does the others; the last finds all done."""
    home = tmp_path / "run"
    cut = quickstart("--out", home, "--max-update", 6, "--minutes", 0.001)
    assert cut.returncode == 0, cut.stdout[-3000:] + cut.stderr[-3000:]
    for made in ("data-bin/train.bin", "checkpoints/checkpoint_best.pt", "tensorboard/train_inner", "log.txt"):
        assert (home / made).exists(), made
    assert_meaningless(cut.stdout, "CUT SHORT: time was up after 1 of 6 updates")
    assert "too few points for a picture" in cut.stdout and not (home / "loss.png").exists()
    assert "train_inner" not in cut.stdout and "train_inner" in (home / "log.txt").read_text()

    continued = quickstart("--out", home, "--minutes", "10")
    assert continued.returncode == 0, continued.stdout[-3000:] + continued.stderr[-3000:]
    assert "going on" in continued.stdout and "fairseq-preprocess" not in continued.stdout
    assert "  update 6 of 6" in continued.stdout and "(epoch 1 @ 1 updates)" in (home / "log.txt").read_text()
    assert_meaningless(continued.stdout)
    assert (home / "loss.png").exists()

    shown = quickstart("--out", home)
    assert "fairseq-train" not in shown.stdout and "--restart" in shown.stdout and "Once upon a" in shown.stdout
    assert_meaningless(shown.stdout)
    assert table(shown.stdout) == table(continued.stdout)
    other = quickstart("--out", home, "--max-update", 3)
    assert other.returncode == 1 and "--restart" in other.stderr


@pytest.mark.parametrize(("speed", "updates"), [(5.0, 900), (2.0, 648), (0.05, 20)])
def test_length_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys, speed: float, updates: int
):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import training
    from directory import RunDirectory

    home = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(training, "updates_a_second", lambda home: speed)
    training.plan(home, 900, minutes=6)
    assert home.state["updates"] == updates
    said = capsys.readouterr().out
    assert f"{speed:.2g} updates per second" in said
    assert (f"shortened from 900 to {updates} updates" in said) == (updates < 900)
    assert ("too few" in said) == (updates == 20)
    schedule = list(map(str, training.arguments(home, updates, {})))
    assert schedule[schedule.index("--total-num-update") + 1] == str(updates)
    assert schedule[schedule.index("--warmup-updates") + 1] == str(updates * 80 // 900)
    home.note(done=updates)
    assert training.caveat(home).startswith(f"SHORTENED: {updates} updates in place of 900") == (updates < 900)


def table(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r"^  (unigram model|this model \(\d+ updates\)) +([\d.]+) +([\d.]+)%$", text, flags=re.MULTILINE)


def assert_meaningless(text: str, warning: str | None = None) -> None:
    """The table says that the model is not good; a warning stands before the answers and after the table, or nowhere."""
    (_, unigram, _), (_, ours, _) = table(text)
    assert 100 < float(unigram) < 4000 and float(ours) > float(unigram)
    assert "NOT BETTER than the unigram model" in text
    if warning is None:
        assert "CUT SHORT" not in text and "SHORTENED" not in text
        return
    assert text.index(warning) < text.index("Once upon a") < text.index("Held-out masks") < text.rindex(warning)


@pytest.mark.parametrize("marker", [None, "{}", "not json"])
@pytest.mark.parametrize("restart", [[], ["--restart"]])
def test_foreign_directory_is_refused_and_untouched(tmp_path: Path, marker: str | None, restart: list[str]):
    (tmp_path / "data-bin").mkdir()
    (tmp_path / "data-bin" / "train.bin").write_text("precious")
    if marker is not None:
        (tmp_path / "quickstart.json").write_text(marker)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = quickstart("--out", tmp_path, *restart)
    assert done.returncode == 1 and "was not made by the quickstart" in done.stderr and done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_restart_deletes_only_what_was_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    from directory import RunDirectory

    home = RunDirectory(tmp_path / "run")
    home.note(updates=3, finished=True)
    made = [
        "train.txt",
        "data-bin/train.bin",
        "checkpoints/checkpoint_last.pt",
        "tensorboard/valid/events.out.tfevents.1",
    ]
    mine = ["notes.txt", "data-bin/notes", "checkpoints/checkpoint_keep.pt", "tensorboard/notes", "train.txt.old"]
    for name in made + mine:
        (home.path / name).parent.mkdir(parents=True, exist_ok=True)
        (home.path / name).write_text("x")
    home.clear()
    left = {str(path.relative_to(home.path)) for path in home.path.rglob("*") if path.is_file()}
    assert left == {*mine, "quickstart.json"}
    assert set(RunDirectory(home.path).state) == {"made_by"}


def test_failure_shows_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.syspath_prepend(str(QUICKSTART))
    from commands import run

    with pytest.raises(SystemExit, match=r"fairseq-info ended with exit code .*log\.txt"):
        run(tmp_path / "log.txt", "info", "--no-such-option")
    assert "--no-such-option" in capsys.readouterr().err


def test_every_option_has_help():
    done = quickstart("--help")
    for option in ("--out DIR", "--max-update N", "--minutes M", "--restart"):
        assert re.search(rf"^  {option} +\w|^  {option}\n +\w", done.stdout, flags=re.MULTILINE), option
    assert "positive" in quickstart("--max-update", "0").stderr
