"""Which runs a command consists of, and the options of each: task x combination of the grid x seed. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError
from fairseq.finetune.glue_files import TASKS, GlueTask
from fairseq.glue.data import Start, TaskData
from fairseq.glue.files import fingerprint
from fairseq.glue.recipe import Point, Recipe, TaskRecipe
from fairseq.registry import nearest

# What every run has; a recipe may say otherwise.
ALWAYS: dict[str, Any] = {
    "init_token": 0,
    "separator_token": 2,
    "shorten_method": "truncate",
    "group_by_length": True,
    "required_batch_size_multiple": 1,
    "num_workers": 0,
    "log_format": "json",
    "log_interval": 100,
}


@dataclass(frozen=True)
class Limits:
    """What the command line shortens; None: as the recipe says."""

    max_epoch: int | None = None
    max_updates: int | None = None


@dataclass(frozen=True)
class Run:
    """One fine-tuning. ``options`` are those of fairseq-train that bear on the result (no paths, nothing about saving)."""

    task: str
    seed: int
    point: Point
    metric: str
    options: dict[str, Any]
    updates: int
    examples: int  # seen in training, the measure of its cost
    sources: dict[str, str]  # digests of checkpoint and data, and of the run it starts from
    after: Run | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        point = ",".join(f"{key}={value}" for key, value in self.point)
        return "/".join([self.task, *([point.replace("/", "_")] if point else []), f"seed{self.seed}"])

    @property
    def title(self) -> str:
        """For lines of progress."""
        return " ".join([self.task, *(f"{key}={value}" for key, value in self.point), f"seed {self.seed}"])

    def settings(self) -> dict[str, Any]:
        """What the result depends on; a stored result with other settings is not this run's."""
        return {"options": dict(sorted(self.options.items())), "sources": self.sources}

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Plan:
    """All runs, in the order in which they are done, and the task recipes they came from."""

    runs: list[Run]
    recipes: dict[str, TaskRecipe]
    notes: list[str]


def make(
    recipe: Recipe,
    start: Start,
    data: Sequence[TaskData],
    seeds: int,
    given: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> Plan:
    """Every task of ``data`` with ``seeds`` seeds; ``given`` are settings of the command line, which win.

    All tasks get their first seed before any gets its second, but tasks that others start from come first. Raises
    ConfigError for an option that fairseq-train does not know, before anything is run.
    """
    limits = limits or Limits()
    recipes = {item.task: recipe.for_task(item.task, given) for item in data}
    by_task = {item.task: item for item in data}
    notes: list[str] = []
    order = _order(recipes, notes)
    wanted = {int(item.options.get("max_positions") or 0) for item in recipes.values()} - {0}
    if start.has_table and wanted and start.max_positions not in wanted:
        notes.append(
            f"The recipe cuts inputs at {min(wanted)} tokens, but here they are cut at {start.max_positions}: the checkpoint "
            "has a table of so many learned positions."
        )
    runs: dict[tuple[str, Point, int], Run] = {}
    for seed in recipe.first_seeds(seeds):
        for task in order:
            source = recipes[task].start_from
            for point in recipes[task].points():
                after = None
                if source in by_task:
                    after = runs[source, recipes[source].points()[0], seed]
                runs[task, point, seed] = _run(recipes[task], start, by_task[task], point, seed, limits, after)
    for first in {run.task: run for run in reversed(runs.values())}.values():
        check_options(first)
    return Plan(list(runs.values()), recipes, notes)


def _order(recipes: Mapping[str, TaskRecipe], notes: list[str]) -> list[str]:
    """The tasks, sources before those that start from them."""
    order: list[str] = []
    absent: dict[str, list[str]] = {}
    for task, recipe in recipes.items():
        source = recipe.start_from
        if source is None:
            continue
        if source in recipes:
            if recipes[source].start_from in recipes:
                raise ConfigError(f"{task} starts from {source}, which itself starts from another task; one step only")
            order += [source] if source not in order else []
        else:
            absent.setdefault(source, []).append(task)
    for source, tasks in absent.items():
        notes.append(
            f"By the recipe {', '.join(tasks)} would start from the model of {source}, which is not among the tasks here; "
            "they start from the pretrained checkpoint."
        )
    return order + [task for task in recipes if task not in order]


def _run(
    recipe: TaskRecipe, start: Start, data: TaskData, point: Point, seed: int, limits: Limits, after: Run | None
) -> Run:
    task = TASKS[recipe.task]
    metric = recipe.score or task.metric
    if metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise ConfigError(
            f"{recipe.task} has no score {metric!r}{nearest(metric, list(task.metrics)) or '.'} Its scores: {known}"
        )
    updates, warmup = recipe.length(data.rows["train"], point, limits.max_epoch, limits.max_updates)
    options = {**start.model, **ALWAYS, **recipe.options, **dict(point)}
    if start.max_positions is not None:
        wanted = int(options.get("max_positions") or start.max_positions)
        options["max_positions"] = start.max_positions if start.has_table else min(wanted, start.max_positions)
    options |= _head(task)
    options |= {"seed": seed, "max_update": updates, "best_checkpoint_metric": metric}
    options |= {"maximize_best_checkpoint_metric": True, "valid_subset": ",".join(data.valid_subsets())}
    options |= _schedule(str(options.get("lr_scheduler", "fixed")), updates, warmup)
    if limits.max_epoch is not None and options.get("max_epoch") is not None:
        options["max_epoch"] = min(int(options["max_epoch"]), int(limits.max_epoch))
    examples = updates * recipe.rows_an_update(point)
    sources = {"checkpoint": start.digest, "data": data.digest}
    if after is not None:
        sources["start_from"] = fingerprint(after.settings())
    return Run(recipe.task, seed, point, metric, options, updates, examples, sources, after)


def _head(task: GlueTask) -> dict[str, Any]:
    options: dict[str, Any] = {
        "task": "sentence_prediction",
        "criterion": "sentence_prediction",
        "num_classes": task.num_classes,
    }
    return {**options, "regression_target": True} if task.regression else options


def _schedule(name: str, updates: int, warmup: int) -> dict[str, Any]:
    """The length of the schedule in the options that each scheduler has for it."""
    options: dict[str, Any] = {"warmup_updates": warmup}
    if name == "polynomial_decay":
        options["total_num_update"] = updates
    elif name == "cosine":
        options["lr_period_updates"] = max(1, updates - warmup)
    return options


def words(options: Mapping[str, Any]) -> list[str]:
    """``{"lr": "1e-5", "fp16": True, "update_freq": None}`` as ``["--lr", "1e-5", "--fp16"]``."""
    found: list[str] = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif value is not None and value is not False:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            found += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return found


def command_line(run: Run, data: Path, start: Path, saving: Mapping[str, Any]) -> list[str]:
    """The arguments of fairseq-train for ``run``."""
    return [str(data), *words({**run.options, "finetune_from_model": str(start), **saving})]


def check_options(run: Run) -> None:
    """Raise ConfigError when fairseq-train would not take the options of ``run``."""
    parser = get_training_parser()

    def complain(message: str) -> None:
        raise ConfigError(f"the options of {run.task}: {message}; they come from the recipe or --set")

    parser.error = complain  # type: ignore[method-assign, assignment]
    parse_args_and_arch(parser, ["DATA", *words(run.options)])
