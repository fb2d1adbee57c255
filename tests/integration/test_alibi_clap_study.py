"""The comparison study at a tiny scale: table, picture, going on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.runs import DATA, ROOT, environment

STUDY = ROOT / "examples" / "alibi_clap"
SMALL = "--updates 4 --validations 2 --layers 1 --width 16 --heads 2 --tokens-per-sample 32 --batch-size 4 --speed-rounds 1".split()


def study(*words: object, script: str = "study.py") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(STUDY / script), *map(str, words)]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=600)


def test_study(tmp_path: Path) -> None:
    words = [DATA, "--out", tmp_path, "--variants", "zero_clap", "--seeds", 3, *SMALL, "--set", "common.cpu=true"]
    done = study(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tokens_per_second"]) == {"base", "zero_clap"} and min(results["tokens_per_second"].values()) > 0
    runs = results["runs"]
    assert [(run["variant"], run["seed"]) for run in runs] == [("base", 3), ("zero_clap", 3)]
    for run in runs:
        assert [step for step, _ in run["curve"]] == [2, 4] and run["curve"][-1][1] == run["loss"]
        assert run["parameters"] > 30_000 and run["memory"] > 10
    table = (tmp_path / "table.md").read_text()
    assert "--variants zero_clap" in table and table.count("\n| ") == 3
    # Of two runs one is done, the other is at its last checkpoint: nothing is trained again.
    (tmp_path / "zero_clap-seed3" / "result.json").unlink()
    again = study(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0] == runs[0]
    log = (tmp_path / "zero_clap-seed3" / "log.txt").read_text()
    assert "Loaded checkpoint" in log and log.count('"num_updates": "4"') == 1
    other = study(*words, "common.seed=4")
    assert other.returncode == 1 and "other settings" in other.stderr


def test_bad_input(tmp_path: Path) -> None:
    for words, message in (
        ((DATA, "--variants", "alibo"), "no variant 'alibo'"),
        ((DATA, "--variants", "zero_clap_self_masking"), "cannot be compared"),
        ((tmp_path,), "holds no dict.txt"),
    ):
        done = study(*words)
        assert done.returncode == 2 and message in done.stderr


def test_fast_feed_forward_study(tmp_path: Path) -> None:
    words = [DATA, "--out", tmp_path, "--seeds", 3, *SMALL, "--depth", 4, "--set", "common.cpu=true"]
    done = study(*words, script="fff_study.py")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    dense, fast = results["runs"]
    assert [run["variant"] for run in (dense, fast)] == ["crammed_bert_4095", "ultrafastbert_1x11"]
    assert fast["parameters"] - dense["parameters"] == 31  # biases of the nodes
    assert [step for step, _ in fast["curve"]] == [2, 4] and (tmp_path / "curves.png").is_file()
    assert "loss - crammed_bert_4095" in (tmp_path / "table.md").read_text()


def test_bigs_study(tmp_path: Path) -> None:
    words = [DATA, "--out", tmp_path, "--seeds", 3, *SMALL, "--longer-updates", 2, "--valid-batches", 2]
    done = study(*words, "--width", 24, "--set", "common.cpu=true", script="bigs_study.py")
    assert done.returncode == 0, done.stdout + done.stderr
    attention, alibi, bigs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["variant"] for run in (attention, alibi, bigs)] == ["roberta", "alibi", "bigs"]
    assert abs(bigs["parameters"] - attention["parameters"]) < 600
    assert [step for step, _ in bigs["curve"]] == [2, 4]
    assert "from 32 to 128 (tile)" in (tmp_path / "longer/bigs-seed3/log.txt").read_text()
    table = (tmp_path / "positions.md").read_text().splitlines()
    assert table[0].endswith("| 0 to 31 | 32 to 63 | 64 to 95 | 96 to 127 |") and len(table) == 5
    assert all(0 < float(cell) < 20 for row in table[2:] for cell in row.split("|")[2:6])
    assert (tmp_path / "positions.png").read_bytes().startswith(b"\x89PNG")


def test_convolution_study(tmp_path: Path) -> None:
    words = [DATA, "--out", tmp_path, "--seeds", 3, *SMALL, "--set", "common.cpu=true"]
    done = study(*words, script="conv_study.py")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["variant"] for run in runs] == ["bert_base", "bert_alibi", "bert_conv_base"]
    learned, alibi, composite = (run["parameters"] for run in runs)
    assert learned - alibi == 32 * 16  # positions
    assert composite - alibi == 17 * (2 + 8 + 8)  # offsets times heads and twice their width
    assert (tmp_path / "curves.png").is_file() and "loss - bert_base" in (tmp_path / "table.md").read_text()
