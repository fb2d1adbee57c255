"""The result of a run: its validation curve, read from the log of fairseq-train, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairseq.data.downstream.glue import TASKS
from fairseq.errors import ConfigError, TrainingError
from fairseq.finetuning.files import write_json
from fairseq.finetuning.plan import Run

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

    def left(self, baseline: float, subset: str = "valid") -> bool:
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


def write(directory: Path, result: Result) -> None:
    """Keep ``result`` in the run's directory."""
    write_json(
        directory / RESULT,
        {
            **record(result),
            "settings": result.run.settings(),
            "curve": [asdict(item) for item in result.curve],
        },
    )


def record(result: Result, select: str | None = None) -> dict[str, Any]:
    """One line of ``results.jsonl``: which run, and with ``select`` the scores that count."""
    run = result.run
    found: dict[str, Any] = {"task": run.task, "seed": run.seed, "grid": dict(run.point), "metric": run.metric}
    if select is not None:
        chosen = result.chosen(select)
        found |= {"score": chosen.scores["valid"][run.metric], "epoch": chosen.epoch, "updates": chosen.updates}
        found["scores"] = chosen.scores
    return {**found, "seconds": round(result.seconds, 1)}


def find(directory: Path, run: Run) -> Result | None:
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


def by_task(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Grouped, tasks in order of appearance."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.run.task, []).append(result)
    return found
