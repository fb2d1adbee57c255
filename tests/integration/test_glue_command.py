"""``fairseq-glue`` end to end on a tiny GLUE directory and a tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairseq.cli.glue import cli_main
from tests.common import ROOT, error_sentence, run_command
from tests.tiny_glue import tiny_checkpoint, tiny_glue

RECIPE = """\
about: For a test.
select: last
all: {epochs: 8, warmup: 0.1, batch_size: 16, lr: 2e-2, optimizer: adam, lr_scheduler: polynomial_decay, pooling: mean}
tasks:
  RTE: {epochs: 2, start_from: CoLA}
"""
FLAGS = "--bpe none --tasks CoLA RTE --seeds 1 --jobs 1 --cpu".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``checkpoints``, ``glue``, ``mine.yaml``."""
    directory = tmp_path_factory.mktemp("glue")
    tiny_checkpoint(directory)
    tiny_glue(directory / "glue")
    (directory / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return directory


def words(place: Path, *more: object) -> list[str]:
    fixed = ["--checkpoint", place / "checkpoints" / "checkpoint_best.pt", "--data-dir", place / "glue"]
    return list(map(str, [*fixed, "--recipe", place / "mine.yaml", *FLAGS, *more]))


def glue(place: Path, *more: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    return run_command("glue", *words(place, *more), cwd=place, expect=expect, timeout=1200)


@pytest.fixture(scope="module")
def whole(place: Path) -> subprocess.CompletedProcess[str]:
    """An uninterrupted command, with results in ``out``."""
    return glue(place, "--out", "out", "--predict-test")


def records(out: Path) -> list[dict[str, object]]:
    """``results.jsonl`` without what depends on the speed of the machine."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_everything_is_written(place: Path, whole: subprocess.CompletedProcess[str]) -> None:
    out = place / "out"
    assert "[2/2] " in whole.stdout and "none to go" in whole.stdout
    table = (out / "table.md").read_text(encoding="utf-8")
    assert table in whole.stdout and "**100.0**" in table  # CoLA is learnt
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
    rows = records(out)
    assert [(row["task"], row["seed"]) for row in rows] == [("CoLA", 1), ("RTE", 1)]
    assert all(row["updates"] == {"CoLA": 24, "RTE": 6}[str(row["task"])] for row in rows)
    cola = (out / "submission" / "CoLA.tsv").read_text().splitlines()
    assert cola[0] == "index\tprediction" and [line.split("\t")[0] for line in cola[1:]] == list(map(str, range(10)))
    tests = [line.split("\t")[1] for line in (place / "glue" / "CoLA" / "test.tsv").read_text().splitlines()[1:]]
    assert [line.split("\t")[1] for line in cola[1:]] == [str(int(int(text[1:3]) >= 20)) for text in tests]
    rte = (out / "submission" / "RTE.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[1] for line in rte} <= {"entailment", "not_entailment"}
    # RTE started from CoLA's model of the same seed; the best model of each task is left
    assert f"{out}/runs/CoLA/seed1/model.pt" in (out / "runs" / "RTE" / "seed1" / "config.yaml").read_text()
    assert sorted(path.parts[-3] for path in out.glob("runs/*/*/model.pt")) == ["CoLA", "RTE"]
    assert not list(out.glob("runs/*/*/checkpoints"))


def test_finished_runs_are_not_repeated(place: Path, whole: subprocess.CompletedProcess[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "out").glob("runs/*/*/result.json")}
    table = (place / "out" / "table.md").read_text(encoding="utf-8")
    again = glue(place, "--out", "out", "--predict-test")
    assert "0 runs to do, 2 done" in again.stdout and len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert table == (place / "out" / "table.md").read_text(encoding="utf-8")


def test_other_settings_are_refused(place: Path, whole: subprocess.CompletedProcess[str]) -> None:
    done = glue(place, "--out", "out", "--set", "dropout=0.5", expect=2)
    sentence = error_sentence(done, "glue")
    assert "runs/CoLA/seed1 was made with other settings (--dropout: there 0.1, now 0.5)" in sentence
    done = glue(place, "--out", "out", "--train-examples", 10, expect=2)
    assert "runs/CoLA has results on other data" in error_sentence(done, "glue")


def start(place: Path, *more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "fairseq.cli.glue", *words(place, *more)]
    return subprocess.Popen(
        line,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests started in the background of a shell inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def in_second_run(out: Path, process: subprocess.Popen[str]) -> Path:
    """Wait until one run is done and the next has begun to train; returns its directory."""
    end = time.monotonic() + 3000
    while time.monotonic() < end and process.poll() is None:
        for log in out.glob("runs/*/*/log.txt"):
            second = list(out.glob("runs/*/*/result.json")) and not (log.parent / "result.json").exists()
            if second and "begin validation" in log.read_text(encoding="utf-8", errors="replace"):
                return log.parent
        time.sleep(0.02)
    raise AssertionError(f"no second run: {process.communicate()}")


def alive(out: Path) -> bool:
    """Whether a process still works for ``out``."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return any("fairseq.cli.train_config" in line and str(out) in line for line in listing.splitlines())


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("resumable", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_and_started_again(
    place: Path, whole: subprocess.CompletedProcess[str], tmp_path: Path, resumable: bool
) -> None:
    more = ["--out", tmp_path / "out", "--predict-test", *(["--save-optimizer-state"] if resumable else [])]
    process = start(place, *more)
    cut = in_second_run(tmp_path / "out", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 10
    while alive(tmp_path / "out") and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(tmp_path / "out"), "a child outlived its parent"
    assert not (cut / "result.json").exists()
    again = glue(place, *more)
    assert "1 run to do, 1 done" in again.stdout
    if resumable:
        assert "Loaded checkpoint" in (cut / "log.txt").read_text()
    assert records(tmp_path / "out") == records(place / "out")
    first, second = ((where / "table.md").read_text(encoding="utf-8") for where in (place / "out", tmp_path / "out"))
    assert first.split("\n", 1)[1] == second.split("\n", 1)[1]  # the first line is the command, with its --out
    for name in ("CoLA.tsv", "RTE.tsv"):
        assert (tmp_path / "out" / "submission" / name).read_bytes() == (
            place / "out" / "submission" / name
        ).read_bytes()


def test_interrupted(place: Path, tmp_path: Path) -> None:
    process = start(place, "--out", tmp_path / "out")
    end = time.monotonic() + 60
    while not list((tmp_path / "out").glob("runs/*/*/log.txt")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == [
        f"fairseq-glue: error: interrupted; the same command goes on from what is in {tmp_path / 'out'}"
    ]
    assert not alive(tmp_path / "out")


def test_a_failed_run_does_not_stop_the_others(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        f"extends: {place / 'mine.yaml'}\ntasks:\n  CoLA: {{lr: 1e38, clip_norm: 0, epochs: 1}}\n"
        "  RTE: {start_from: null, epochs: 1}\n",
        encoding="utf-8",
    )
    more = ["--recipe", tmp_path / "bad.yaml", "--out", tmp_path / "out", "--train-examples", 24]
    done = glue(place, *more, expect=2)
    assert "CoLA seed 1 FAILED: " in done.stdout and "RTE seed 1: accuracy" in done.stdout
    assert "1 of 2 runs failed" in error_sentence(done, "glue")
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "- CoLA seed 1: " in table and "RTE 24" in table and "limited to 24 rows" in table


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "CLOA"], "unknown GLUE task 'CLOA'; did you mean 'CoLA'?"),
        (["--tasks", "MNLI"], "task MNLI is not in --data-dir"),
        (["--tasks", "AX"], "only a test set"),
        (["--checkpoint", "nowhere.pt"], "--checkpoint nowhere.pt does not exist"),
        (["--data-dir", "nowhere"], "--data-dir nowhere does not exist"),
        (["--recipe", "robreta"], "did you mean 'roberta'"),
        (["--dict", "nowhere.txt"], "--dict nowhere.txt does not exist"),
        (["--bpe", "gpt2", "--gpt2-encoder-json", "nowhere.json"], "nowhere.json"),
        (["--set", "learning_rate=1"], "unknown option --learning-rate"),
        (["--set", "score=f2"], "CoLA has no score 'f2'"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_mistakes_end_before_any_run(
    place: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli_main(words(place, "--out", "out", *more))
    errors = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and len(errors) == 1
    assert errors[0].startswith("fairseq-glue: error: ") and message in errors[0]
    assert not Path("out", "runs").exists()


def test_all_names_what_is_missing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli_main(words(place, "--out", tmp_path / "out", "--tasks", "all", "--dry-run", "--set", "start_from="))
    shown = capsys.readouterr().out
    assert "MNLI (no folder MNLI)" in shown and "STS-B: 1 run of 24 updates" in shown
    assert "WNLI" not in shown and "regression_target: true" in shown
