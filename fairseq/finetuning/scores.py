"""From runs to the lines of the table: which setting of a grid counts, medians, baselines, collapsed runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairseq.data.downstream.glue import TASKS
from fairseq.finetuning.baseline import constant_score, standard_error
from fairseq.finetuning.datasets import TaskData
from fairseq.finetuning.plan import Run
from fairseq.finetuning.recipe import Point, Recipe
from fairseq.finetuning.results import Result

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

    ``left``: runs that were better than ``baseline``, the best constant answer, at least once; ``noise``: one standard
    error of the score by chance on so many ``rows``; ``failed``: runs without a result.
    """

    task: str
    subset: str
    metric: str
    values: tuple[float, ...]
    baseline: float
    rows: int
    left: int
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
        return self.left == 0

    @property
    def within_noise(self) -> bool:
        return not self.collapsed and self.median <= self.baseline + 2 * self.noise


def best_point(results: Sequence[Result], select: str) -> Point:
    """The combination of the grid with the highest median score over its seeds (the first of equals)."""
    points = dict.fromkeys(result.run.point for result in results)
    return max(points, key=lambda point: point_median(results, point, select))


def point_median(results: Sequence[Result], point: Point, select: str) -> float:
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
                    sum(result.left(main_baseline, subset) for result in mine),
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
