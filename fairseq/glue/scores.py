"""From the logs of runs to the lines of the table: results, which setting of a grid counts, medians, baselines.

The baseline is what the best answer scores that ignores the text; a run that never beats it is collapsed. All values are
in hundredths, as the criterions report them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairseq.errors import ConfigError, TrainingError
from fairseq.finetune.glue_files import TASKS
from fairseq.glue.data import TaskData
from fairseq.glue.files import write_json
from fairseq.glue.plan import Run
from fairseq.glue.recipe import GridPoint, Recipe

POSITIVE = "1"  # the class that GLUE's F1 is about


def constant_score(metric: str, labels: Mapping[str, int]) -> float:
    """The highest ``metric`` that one and the same answer for every row reaches; ``labels`` counts the rows by label.

    For accuracy that is the fraction of the most frequent class, for F1 what "always yes" scores. A constant has no
    correlation with anything, so Matthews, Pearson and Spearman are 0.
    """
    total = sum(labels.values())
    if not total or metric not in ("accuracy", "f1", "acc_and_f1"):
        return 0.0
    return 100 * max(_constant(metric, label, labels) for label in labels)


def _constant(metric: str, answer: str, labels: Mapping[str, int]) -> float:
    fraction = labels[answer] / sum(labels.values())
    f1 = 2 * fraction / (1 + fraction) if answer == POSITIVE else 0.0
    return {"accuracy": fraction, "f1": f1, "acc_and_f1": (fraction + f1) / 2}[metric]


def standard_error(metric: str, baseline: float, rows: int) -> float:
    """How far chance alone moves a score at ``baseline`` on ``rows`` rows, one standard deviation (in hundredths).

    Binomial for fractions of right answers (and, roughly, for F1); ``1 / sqrt(rows)`` for correlations near 0.
    """
    if metric in ("accuracy", "f1", "acc_and_f1"):
        fraction = baseline / 100
        return 100 * math.sqrt(max(fraction * (1 - fraction), 0.0) / rows)
    return 100 / math.sqrt(rows)


RESULT = "result.json"
_HALF_DIGIT = 0.05  # scores are logged with one decimal


@dataclass(frozen=True)
class Validation:
    """The scores of one validation: subset -> metric -> value (in hundredths), after ``updates``."""

    epoch: int
    updates: int
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """What a finished run left. ``seconds`` is wall time."""

    run: Run
    curve: list[Validation]
    seconds: float

    def chosen(self, select: str) -> Validation:
        """The validation that counts: the ``last``, or the ``best`` by the run's metric (the first of equals)."""
        if select == "last":
            return self.curve[-1]
        return max(self.curve, key=lambda item: item.scores["valid"][self.run.metric])

    def score(self, select: str, subset: str = "valid", metric: str | None = None) -> float:
        return self.chosen(select).scores[subset][metric or self.run.metric]

    def beat_baseline(self, baseline: float, subset: str = "valid") -> bool:
        """Whether any validation was better than a constant answer; otherwise nothing was learnt."""
        limit = baseline + _HALF_DIGIT + 1e-9
        return any(item.scores[subset][self.run.metric] > limit for item in self.curve)


def read_curve(run: Run, log: Path) -> list[Validation]:
    """The validations in a log; a resumed run has appended to it. Raises TrainingError when there is none."""
    found: dict[int, Validation] = {}
    metrics = TASKS[run.task].metrics
    for row in _rows(log):
        for subset in str(run.options["valid_subset"]).split(","):
            if f"{subset}_loss" not in row:
                continue
            updates = int(row[f"{subset}_num_updates"])
            entry = found.setdefault(updates, Validation(int(row["epoch"]), updates, {}))
            entry.scores[subset] = {
                name: float(row[f"{subset}_{name}"]) for name in (*metrics, "loss") if f"{subset}_{name}" in row
            }
    curve = [found[updates] for updates in sorted(found)]
    if not curve:
        raise TrainingError(f"{log} shows no validation")
    lacking = [item for item in curve if run.metric not in item.scores.get("valid", {})]
    if lacking:
        raise TrainingError(f"{log} shows no {run.metric} on the validation after update {lacking[0].updates}")
    return curve


def _rows(log: Path) -> list[dict[str, Any]]:
    rows = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if '{"epoch"' in line:
            try:
                rows.append(json.loads(line[line.index('{"epoch"') :]))
            except ValueError:  # a line that a kill has cut
                continue
    return rows


def last_error(log: Path) -> str:
    """The sentence that a failed run ended with: its last line with ``error``, else its last line."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    wanted = [line for line in lines if "error" in line.lower()]
    return " ".join((wanted or lines or ["it wrote nothing"])[-1].split())


def write_result(directory: Path, result: Result) -> None:
    """Keep ``result`` in the run's directory."""
    write_json(
        directory / RESULT,
        {
            **result_record(result),
            "settings": result.run.settings(),
            "curve": [asdict(item) for item in result.curve],
        },
    )


def result_record(result: Result, select: str | None = None) -> dict[str, Any]:
    """One line of ``results.jsonl``: which run, and with ``select`` the scores that count."""
    run = result.run
    found: dict[str, Any] = {"task": run.task, "seed": run.seed, "grid": dict(run.point), "metric": run.metric}
    if select is not None:
        chosen = result.chosen(select)
        found |= {"score": chosen.scores["valid"][run.metric], "epoch": chosen.epoch, "updates": chosen.updates}
        found["scores"] = chosen.scores
    return {**found, "seconds": round(result.seconds, 1)}


def find_result(directory: Path, run: Run) -> Result | None:
    """The result that is there already. Raises ConfigError when it was made with other settings."""
    try:
        stored = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        raise ConfigError(f"{directory / RESULT} is damaged; delete it, and the run is repeated") from None
    difference = _difference(stored["settings"], run.settings())
    if difference:
        raise ConfigError(
            f"{directory} was made with other settings ({difference}); choose another --out, or delete that directory "
            "to repeat its run"
        )
    return Result(run, [Validation(**item) for item in stored["curve"]], stored["seconds"])


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, in words; empty when none does."""
    new = json.loads(json.dumps(new))
    for part, what in (("sources", ""), ("options", "--")):
        for key in [*new[part], *(key for key in old[part] if key not in new[part])]:
            if old[part].get(key) != new[part].get(key):
                return f"{what}{key.replace('_', '-')}: there {old[part].get(key)}, now {new[part].get(key)}"
    return ""


def by_task(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Grouped, tasks in order of appearance."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.run.task, []).append(result)
    return found


METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "acc_and_f1": "mean of accuracy and F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "pearson_and_spearman": "mean of Pearson and Spearman",
}
_SUBSETS = {("MNLI", "valid"): "MNLI-m", ("MNLI", "valid1"): "MNLI-mm"}


@dataclass(frozen=True)
class Line:
    """One score of one task over all seeds. ``main``: it is what the best setting and epoch are chosen by.

    ``beat_baseline``: runs that were better than ``baseline``, the best constant answer, at least once; ``noise``: one standard
    error of the score by chance on ``rows`` rows; ``failed``: runs without a result.
    """

    task: str
    subset: str
    metric: str
    values: tuple[float, ...]
    baseline: float
    rows: int
    beat_baseline: int
    failed: int
    noise: float
    main: bool

    @property
    def label(self) -> str:
        return _SUBSETS.get((self.task, self.subset), self.task)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def collapsed(self) -> bool:
        """No run learnt anything."""
        return self.beat_baseline == 0

    @property
    def within_noise(self) -> bool:
        return not self.collapsed and self.median <= self.baseline + 2 * self.noise


def best_point(results: Sequence[Result], select: str) -> GridPoint:
    """The combination of the grid with the highest median score over its seeds (the first of equals)."""
    points = dict.fromkeys(result.run.point for result in results)
    return max(points, key=lambda point: point_median(results, point, select))


def point_median(results: Sequence[Result], point: GridPoint, select: str) -> float:
    return statistics.median(result.score(select) for result in results if result.run.point == point)


def best_run(results: Sequence[Result], select: str) -> Result:
    """The run with the highest score among those of the best setting: the one that test predictions come from."""
    point = best_point(results, select)
    return max((result for result in results if result.run.point == point), key=lambda result: result.score(select))


def lines(results: Sequence[Result], failures: Sequence[Run], data: TaskData, recipe: Recipe) -> list[Line]:
    """The lines of one task (its ``results``, at least one): the main score first, then its other scores."""
    task = TASKS[data.task]
    point = best_point(results, recipe.select)
    mine = [result for result in results if result.run.point == point]
    failed = sum(run.point == point for run in failures)
    main = mine[0].run.metric
    metrics = [main, *(metric for metric in task.metrics if metric != main)]
    found = []
    for subset in data.valid_subsets():
        labels = data.labels[subset]
        main_baseline = constant_score(main, labels)
        for metric in metrics:
            baseline = constant_score(metric, labels)
            rows = data.rows[subset]
            found.append(
                Line(
                    data.task,
                    subset,
                    metric,
                    tuple(result.score(recipe.select, subset, metric) for result in mine),
                    baseline,
                    rows,
                    sum(result.beat_baseline(main_baseline, subset) for result in mine),
                    failed,
                    standard_error(metric, baseline, rows),
                    metric == main,
                )
            )
    return found


def average(table: Sequence[Line], recipe: Recipe) -> float:
    """The mean of the main medians: over tasks (both MNLI sets together), or over columns."""
    main = [line for line in table if line.main]
    if recipe.average == "columns":
        return statistics.mean(line.median for line in main)
    tasks: dict[str, list[float]] = {}
    for line in main:
        tasks.setdefault(line.task, []).append(line.median)
    return statistics.mean(statistics.mean(values) for values in tasks.values())


def grid_medians(results: Mapping[str, Sequence[Result]], select: str) -> dict[str, list[tuple[str, float]]]:
    """For tasks with a grid: (setting, median), best first."""
    found = {}
    for task, mine in results.items():
        points = list(dict.fromkeys(result.run.point for result in mine))
        if len(points) > 1:
            medians = [
                (" ".join(f"{key}={value}" for key, value in point), point_median(mine, point, select))
                for point in points
            ]
            found[task] = sorted(medians, key=lambda item: -item[1])
    return found
