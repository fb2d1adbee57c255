"""Baselines, medians, collapsed runs, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairseq.errors import ConfigError, TrainingError
from fairseq.glue import report, scores
from fairseq.glue import scores as results
from fairseq.glue.data import TaskData
from fairseq.glue.plan import Run
from fairseq.glue.recipe import Recipe
from fairseq.glue.scores import Result, Validation, constant_score, standard_error

BEST = Recipe("mine", "A recipe.")
LAST = Recipe("mine", select="last")


def run(task: str, seed: int, metric: str, point: tuple[tuple[str, str], ...] = ()) -> Run:
    subsets = "valid,valid1" if task == "MNLI" else "valid"
    return Run(task, seed, point, metric, {"lr": "1", "valid_subset": subsets}, {"_name": "roberta"}, 10, {"data": "a"})


def result(task: str, seed: int, metric: str, values: list[float], point: tuple[tuple[str, str], ...] = ()) -> Result:
    subsets = ["valid", "valid1"] if task == "MNLI" else ["valid"]
    extra = {"accuracy": 60.0, "f1": 50.0, "pearson": 1.0, "spearman": 1.0}
    curve = [
        Validation(epoch, 5 * epoch, {subset: {**extra, metric: value + place} for place, subset in enumerate(subsets)})
        for epoch, value in enumerate(values, 1)
    ]
    return Result(run(task, seed, metric, point), curve, 1.0)


def data(task: str, labels: dict[str, int], rows: int | None = None, path: Path = Path("x")) -> TaskData:
    count = rows or sum(labels.values())
    subsets = ["valid", "valid1"] if task == "MNLI" else ["valid"]
    return TaskData(task, path, "a", {"train": 99, **dict.fromkeys(subsets, count)}, dict.fromkeys(subsets, labels))


def test_constant_answers():
    assert constant_score("accuracy", {"0": 129, "1": 279}) == pytest.approx(68.38, abs=0.01)
    assert constant_score("f1", {"0": 129, "1": 279}) == pytest.approx(81.22, abs=0.01)
    assert constant_score("acc_and_f1", {"0": 129, "1": 279}) == pytest.approx(74.80, abs=0.01)
    # more accurate: always no; but F1 and the mean gain from always yes
    assert constant_score("f1", {"0": 63, "1": 37}) == pytest.approx(54.01, abs=0.01)
    assert constant_score("acc_and_f1", {"0": 63, "1": 37}) == pytest.approx(45.51, abs=0.01)
    assert constant_score("accuracy", {"a": 1, "b": 2, "c": 3}) == 50.0
    for metric in ("mcc", "pearson", "spearman", "pearson_and_spearman"):
        assert constant_score(metric, {"0": 9, "1": 1}) == 0.0
    assert constant_score("accuracy", {}) == 0.0


def test_standard_error_of_accuracy_and_mcc():
    assert standard_error("accuracy", 50.0, 100) == 5.0
    assert standard_error("mcc", 0.0, 10_000) == 1.0


def test_best_and_last_validation():
    one = result("RTE", 1, "accuracy", [50.0, 60.0, 60.0, 55.0])
    assert one.chosen("best").epoch == 2 and one.chosen("last").epoch == 4
    assert one.score("last") == 55.0


def test_collapsed_runs_are_marked():
    labels = {"entailment": 146, "not_entailment": 131}  # the majority class scores 52.708
    mine = [result("RTE", 1, "accuracy", [52.7, 47.3]), result("RTE", 2, "accuracy", [52.7, 58.0, 40.0])]
    (line,) = scores.lines(mine, [], data("RTE", labels), BEST)
    assert (line.beat_baseline, line.collapsed, line.within_noise) == (1, False, True)
    assert line.median == pytest.approx(55.35)
    (line,) = scores.lines(mine[:1], [], data("RTE", labels), BEST)
    assert line.collapsed
    text = report.render(_report({"RTE": data("RTE", labels)}, mine))
    assert "⚠ 1 collapsed" in text and "| 52.7 | 1 of 2 |" in text and "≈ chance" in text
    assert "⚠ collapsed" in report.render(_report({"RTE": data("RTE", labels)}, mine[:1]))


def _report(tasks: dict[str, TaskData], mine: list[Result], recipe: Recipe = BEST, failed: dict | None = None):
    planned = [item.run for item in mine] + list(failed or {})
    return report.Report(
        "fairseq-glue ...", "model.pt", 5, recipe, planned, tasks, {item.run: item for item in mine}, failed or {}
    )


def test_the_best_setting_of_a_grid_counts():
    low, high = (("lr", "1e-5"),), (("lr", "1e-4"),)
    mine = [
        *(result("CoLA", seed, "mcc", [value], low) for seed, value in ((1, 10.0), (2, 11.0), (3, 12.0))),
        *(result("CoLA", seed, "mcc", [value], high) for seed, value in ((1, 90.0), (2, 2.0), (3, 1.0))),
    ]
    assert scores.best_point(mine, "best") == low
    assert scores.best_run(mine, "best").run.seed == 3
    text = report.render(_report({"CoLA": data("CoLA", {"0": 5, "1": 5})}, mine))
    assert "- CoLA: lr=1e-5 11.0, lr=1e-4 2.0" in text and "| **11.0** | 10.0 to 12.0 |" in text


def test_means_over_tasks_and_over_columns():
    mine = [result("MNLI", 1, "accuracy", [80.0]), result("RTE", 1, "accuracy", [61.0])]
    tasks = {"MNLI": data("MNLI", {"a": 50, "b": 50}), "RTE": data("RTE", {"a": 50, "b": 50})}
    found = _report(tasks, mine).lines()
    assert [line.label for line in found if line.main] == ["MNLI-m", "MNLI-mm", "RTE"]
    assert scores.average(found, BEST) == pytest.approx((80.5 + 61) / 2)
    assert scores.average(found, Recipe("x", average="columns")) == pytest.approx((80 + 81 + 61) / 3)
    text = report.render(_report(tasks, mine))
    assert "only 2 of GLUE's 8 tasks" in text and "**70.8**" in text


def test_failures_are_in_the_table():
    failed = {run("RTE", 2, "accuracy"): "fairseq-train: error: no room"}
    text = report.render(
        _report({"RTE": data("RTE", {"a": 1, "b": 1}, 100)}, [result("RTE", 1, "accuracy", [90.0])], failed=failed)
    )
    assert "✗ 1 failed" in text and "- RTE seed 2: fairseq-train: error: no room" in text
    assert "1 of 2 runs are done" in text
    only = report.render(_report({"RTE": data("RTE", {"a": 1, "b": 1})}, [], failed=failed))
    assert "no room" in only


def test_picture(tmp_path: Path):
    mine = [result("STS-B", seed, "pearson_and_spearman", [value]) for seed, value in ((1, -3.0), (2, 20.0))]
    lines = scores.lines(mine, [], data("STS-B", {}, 100), LAST)
    report.draw(lines, "title", tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


LOG = """\
2026 | INFO | valid | {"epoch": 1, "valid_loss": "0.9", "valid_accuracy": "61.0", "valid_num_updates": "5"}
2026 | INFO | train | {"epoch": 1, "train_loss": "0.9", "train_num_updates": "5"}
2026 | INFO | valid | {"epoch": 2, "valid_loss": "0.8", "valid_accuracy": "62.5", "valid_num_updates": "10"}
2026 | INFO | valid | {"epoch": 2, "valid_lo
"""


def test_logs(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text(LOG, encoding="utf-8")
    curve = results.read_curve(run("RTE", 1, "accuracy"), log)
    assert [(item.epoch, item.updates, item.scores["valid"]["accuracy"]) for item in curve] == [
        (1, 5, 61.0),
        (2, 10, 62.5),
    ]
    with pytest.raises(TrainingError, match="no mcc"):
        results.read_curve(run("CoLA", 1, "mcc"), log)
    log.write_text("x\nfairseq-train: error: no room on the disk\n\n", encoding="utf-8")
    assert results.last_error(log) == "fairseq-train: error: no room on the disk"
    with pytest.raises(TrainingError, match="no validation"):
        results.read_curve(run("RTE", 1, "accuracy"), log)
    assert results.last_error(tmp_path / "none") == "it wrote nothing"


def test_results_are_found_again_but_not_those_of_other_settings(tmp_path: Path):
    one = result("RTE", 1, "accuracy", [50.0, 60.0])
    assert results.find_result(tmp_path, one.run) is None
    results.write_result(tmp_path, one)
    found = results.find_result(tmp_path, one.run)
    assert found is not None and found.curve == one.curve
    other = Run(**{**vars(one.run), "options": {**one.run.options, "lr": "2"}})
    with pytest.raises(ConfigError, match=r"made with other settings \(--lr: there 1, now 2\)"):
        results.find_result(tmp_path, other)
    other = Run(**{**vars(one.run), "sources": {"data": "b"}})
    with pytest.raises(ConfigError, match="data: there a, now b"):
        results.find_result(tmp_path, other)
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="damaged"):
        results.find_result(tmp_path, one.run)


def test_records():
    line = results.result_record(result("RTE", 1, "accuracy", [50.0, 60.0]), "best")
    assert json.dumps(line) and (line["score"], line["epoch"], line["updates"]) == (60.0, 2, 10)
