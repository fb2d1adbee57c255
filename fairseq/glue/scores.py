"""From the logs of runs to the lines of the table: results, which setting of a grid counts, medians, baselines.

The baseline is what the best answer scores that ignores the text; a run that never beats it is collapsed. All values are
in hundredths, as the criterions report them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fairseq.data.text import json_value
from fairseq.errors import ConfigError, TrainingError
from fairseq.finetune.glue_files import TASKS
from fairseq.glue.data import TaskData
from fairseq.glue.files import write_json
from fairseq.glue.plan import Run
from fairseq.glue.recipe import GridPoint, Recipe

T = TypeVar("T")
K = TypeVar("K")

POSITIVE = "1"  # the class that GLUE's F1 is about
FRACTIONS = ("accuracy", "f1", "acc_and_f1")  # metrics of right answers; the others are correlations


def constant_score(metric: str, labels: Mapping[str, int]) -> float:
    """The highest ``metric`` that one and the same answer for every row reaches; ``labels`` counts the rows by label.

    For accuracy that is the fraction of the most frequent class, for F1 what "always yes" scores. A constant has no
    correlation with anything, so Matthews, Pearson and Spearman are 0.
    """
    if metric not in FRACTIONS:
        return 0.0
    best = 0.0
    for label, rows in labels.items():
        fraction = rows / sum(labels.values())
        f1 = 2 * fraction / (1 + fraction) if label == POSITIVE else 0.0
        best = max(best, {"accuracy": fraction, "f1": f1, "acc_and_f1": (fraction + f1) / 2}[metric])
    return 100 * best


def standard_error(metric: str, baseline: float, rows: int) -> float:
    """How far chance alone moves a score at ``baseline`` on ``rows`` rows, one standard deviation (in hundredths).

    Binomial for fractions of right answers (and, roughly, for F1); ``1 / sqrt(rows)`` for correlations near 0.
    """
    if metric in FRACTIONS:
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
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        _, start, rest = line.partition('{"epoch"')
        try:
            row = json.loads(start + rest)
        except ValueError:  # another line, or one that a kill has cut
            continue
        for subset in str(run.options["valid_subset"]).split(","):
            if f"{subset}_loss" not in row:
                continue
            updates = int(row[f"{subset}_num_updates"])
            entry = found.setdefault(updates, Validation(int(row["epoch"]), updates, {}))
            names = [name for name in (*TASKS[run.task].metrics, "loss") if f"{subset}_{name}" in row]
            entry.scores[subset] = {name: float(row[f"{subset}_{name}"]) for name in names}
    curve = [found[updates] for updates in sorted(found)]
    if not curve:
        raise TrainingError(f"{log} shows no validation")
    lacking = [item for item in curve if run.metric not in item.scores.get("valid", {})]
    if lacking:
        raise TrainingError(f"{log} shows no {run.metric} on the validation after update {lacking[0].updates}")
    return curve


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
    curve = [asdict(item) for item in result.curve]
    write_json(directory / RESULT, {**result_record(result), "settings": result.run.settings(), "curve": curve})


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
        stored = json_value((directory / RESULT).read_text(encoding="utf-8"))
        result = Result(run, [Validation(**item) for item in stored["curve"]], float(stored["seconds"]))
        difference = _difference(stored["settings"], run.settings())
    except OSError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{directory / RESULT} is damaged; delete it, and the run is repeated") from None
    if difference:
        raise ConfigError(
            f"{directory} was made with other settings ({difference}); choose another --out, or delete that directory "
            "to repeat its run"
        )
    return result


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting that differs, in words; empty when none does."""
    new = json.loads(json.dumps(new))
    for part, what in (("sources", ""), ("options", "--")):
        for key in [*new[part], *(key for key in old[part] if key not in new[part])]:
            if old[part].get(key) != new[part].get(key):
                return f"{what}{key.replace('_', '-')}: there {old[part].get(key)}, now {new[part].get(key)}"
    return ""


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items of every key, in order of appearance."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def by_task(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Grouped, tasks in order of appearance."""
    return grouped(results, lambda result: result.run.task)


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

    ``beat_baseline``: runs that were better than ``baseline``, the best constant answer, at least once; ``failed``: runs without a result.
    """

    task: str
    subset: str
    metric: str
    values: tuple[float, ...]
    baseline: float
    rows: int
    beat_baseline: int
    failed: int
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
        return not self.collapsed and self.median <= self.baseline + 2 * standard_error(
            self.metric, self.baseline, self.rows
        )


def medians(results: Iterable[Result], select: str) -> dict[GridPoint, float]:
    """The median score over the seeds of every combination of the grid."""
    points = grouped(results, lambda result: result.run.point)
    return {point: statistics.median(result.score(select) for result in mine) for point, mine in points.items()}


def best_point(results: Sequence[Result], select: str) -> GridPoint:
    """The combination of the grid with the highest median score over its seeds (the first of equals)."""
    found = medians(results, select)
    return max(found, key=found.__getitem__)


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
    return [
        Line(
            data.task,
            subset,
            metric,
            tuple(result.score(recipe.select, subset, metric) for result in mine),
            constant_score(metric, data.labels[subset]),
            data.rows[subset],
            sum(result.beat_baseline(constant_score(main, data.labels[subset]), subset) for result in mine),
            failed,
            metric == main,
        )
        for subset in data.valid_subsets()
        for metric in metrics
    ]


def average(table: Sequence[Line], recipe: Recipe) -> float:
    """The mean of the main medians: over tasks (both MNLI sets together), or over columns."""
    main = [line for line in table if line.main]
    if recipe.average == "columns":
        return statistics.mean(line.median for line in main)
    tasks = grouped(main, lambda line: line.task).values()
    return statistics.mean(statistics.mean(line.median for line in mine) for mine in tasks)
