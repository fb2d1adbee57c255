"""Which runs a command consists of, and the configuration of each: task x combination of the grid x seed."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.dataclass.base import GROUPS, field_specs
from fairseq.dataclass.build import build_config, nest, require_complete
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.slots import chosen_variants, model_specs
from fairseq.errors import ConfigError
from fairseq.finetune.glue_files import TASKS
from fairseq.glue.data import TaskData
from fairseq.glue.files import fingerprint
from fairseq.glue.pretrained import PretrainedModel
from fairseq.glue.recipe import GridPoint, Recipe, TaskRecipe
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


class Limits(NamedTuple):
    """What the command line shortens; None: as the recipe says."""

    max_epoch: int | None = None
    max_updates: int | None = None


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    ``trainer``: the words of a command that trains as the YAML file says that follows them. With ``resumable`` checkpoints
    hold the optimizer's state, and an interrupted run goes on from its last one; otherwise it starts anew.
    """

    checkpoint: str
    data_dir: Path
    out: Path
    trainer: Sequence[str]
    tasks: Sequence[str] = ("all",)
    recipe: str = "roberta"
    seeds: int = 5
    given: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    train_examples: int | None = None
    jobs: int | None = None
    cores: int = 1
    cpu: bool = False
    dictionary: str | None = None
    bpe: str | None = None
    bpe_options: Mapping[str, Any] = field(default_factory=dict)
    keep: str = "none"
    resumable: bool = False
    predict_test: bool = False
    dry_run: bool = False
    user_dir: str | None = None
    command: str = "fairseq-glue"


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    ``model``: the stored settings of the architecture; ``options``: those of fairseq-train that bear on the result (no
    paths, nothing about saving); ``sources``: digests of checkpoint and data, and of the run that it starts from.
    """

    task: str
    seed: int
    point: GridPoint
    metric: str
    options: dict[str, Any]
    model: dict[str, Any]
    updates: int
    sources: dict[str, str]
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
        return {"options": {**self.model, **self.options}, "sources": self.sources}

    def configuration(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What training is given, section -> key -> value; ``more`` are further options.

        Raises ConfigError for an option that no section and no chosen component has.
        """
        given = {**self.options, **(more or {})}
        given = {key: value for key, value in given.items() if value is not None and value is not False}
        # Options of variants are known where these are chosen.
        chosen = chosen_variants(self.model["_name"], self.model)
        variants = {slot: name for slot, name in self.model.items() if slot in chosen}
        tree = nest(argparse.Namespace(**_attributes({**variants, **given}, self.model["_name"])))
        nodes = {name: vars(node) if isinstance(node, argparse.Namespace) else node for name, node in tree.items()}
        return {**{name: node for name, node in nodes.items() if node}, "model": {**self.model, **nodes["model"]}}

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Plan:
    """All runs, in the order in which they are done, and what is to be said about them."""

    runs: list[Run]
    notes: list[str]


def make(
    recipe: Recipe,
    start: PretrainedModel,
    data: Sequence[TaskData],
    seeds: int,
    given: Mapping[str, Any],
    limits: Limits,
) -> Plan:
    """Every task of ``data`` with ``seeds`` seeds; ``given`` are settings of the command line, which win.

    All tasks get their first seed before any gets its second, but tasks that others start from come first. Raises
    ConfigError for an option that fairseq-train does not know, before anything is run.
    """
    recipes = {item.task: recipe.for_task(item.task, given) for item in data}
    by_task = {item.task: item for item in data}
    notes: list[str] = []
    order = _order(recipes, notes)
    wanted = {int(item.options.get("max_positions") or 0) for item in recipes.values()} - {0}
    if start.has_table and wanted and start.max_positions not in wanted:
        notes.append(
            f"The recipe cuts inputs at {min(wanted)} tokens, but here they are cut at {start.max_positions}: the checkpoint "
            "has a table of that many learned positions."
        )
    runs: dict[tuple[str, GridPoint, int], Run] = {}
    for seed in recipe.first_seeds(seeds):
        for task in order:
            source = recipes[task].start_from
            for point in recipes[task].points():
                after = runs[source, recipes[source].points()[0], seed] if source in by_task else None
                runs[task, point, seed] = _run(recipes[task], start, by_task[task], point, seed, limits, after)
    for first in {run.task: run for run in reversed(runs.values())}.values():
        _check(first)
    return Plan(list(runs.values()), notes)


def _order(recipes: Mapping[str, TaskRecipe], notes: list[str]) -> list[str]:
    """The tasks, sources before those that start from them."""
    order: list[str] = []
    absent: dict[str, list[str]] = {}
    for task, recipe in recipes.items():
        source = recipe.start_from
        if source is not None and source in recipes:
            if recipes[source].start_from in recipes:
                raise ConfigError(f"{task} starts from {source}, which itself starts from another task; one step only")
            order += [source] if source not in order else []
        elif source is not None:
            absent.setdefault(source, []).append(task)
    notes += [
        f"By the recipe {', '.join(tasks)} would start from the model of {source}, which is not among the tasks here; "
        "they start from the pretrained checkpoint."
        for source, tasks in absent.items()
    ]
    return order + [task for task in recipes if task not in order]


def _run(
    recipe: TaskRecipe,
    start: PretrainedModel,
    data: TaskData,
    point: GridPoint,
    seed: int,
    limits: Limits,
    after: Run | None,
) -> Run:
    task = TASKS[recipe.task]
    metric = recipe.score or task.metric
    if metric not in task.metrics:
        known = ", ".join(task.metrics)
        raise ConfigError(
            f"{recipe.task} has no score {metric!r}{nearest(metric, list(task.metrics)) or '.'} Its scores: {known}"
        )
    updates, warmup = recipe.length(data.rows["train"], point, *limits)
    options = {**ALWAYS, **recipe.options, **dict(point)}
    if start.max_positions is not None:
        wanted = int(options.get("max_positions") or start.max_positions)
        options["max_positions"] = start.max_positions if start.has_table else min(wanted, start.max_positions)
    options |= {"task": "sentence_prediction", "criterion": "sentence_prediction", "num_classes": task.num_classes}
    if task.regression:
        options["regression_target"] = True
    if start.omit_mask:
        options["omit_mask"] = True
    options |= {"seed": seed, "max_update": updates, "best_checkpoint_metric": metric}
    options |= {"maximize_best_checkpoint_metric": True, "valid_subset": ",".join(data.valid_subsets())}
    options |= _schedule(str(options.get("lr_scheduler", "fixed")), updates, warmup)
    if limits.max_epoch is not None and options.get("max_epoch") is not None:
        options["max_epoch"] = min(int(options["max_epoch"]), int(limits.max_epoch))
    sources = {"checkpoint": start.digest, "data": data.digest}
    if after is not None:
        sources["start_from"] = fingerprint(after.settings())
    return Run(recipe.task, seed, point, metric, options, start.model, updates, sources, after)


def _schedule(name: str, updates: int, warmup: int) -> dict[str, Any]:
    """The length of the schedule in the options that each scheduler has for it."""
    options: dict[str, Any] = {"warmup_updates": warmup}
    if name == "polynomial_decay":
        options["total_num_update"] = updates
    elif name == "cosine":
        options["lr_period_updates"] = max(1, updates - warmup)
    return options


def _attributes(options: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """``options``, by their names on the command line, as the attributes that `nest` reads."""
    classes = [registry.config_class(options[group]) for group, registry in GROUPS.items() if group in options]
    specs = [None if cls is None else field_specs(cls) for cls in (*SECTIONS.values(), *classes)]
    specs.append(model_specs(arch, options))
    names = {group: group for group in GROUPS}
    for spec in itertools.chain.from_iterable(found.values() for found in specs if found is not None):
        names |= dict.fromkeys((flag.lstrip("-").replace("-", "_") for flag in spec.flags), spec.dest)
    unknown = next((key for key in options if key not in names), None)
    if unknown is not None and None not in specs:  # a component without a dataclass takes options that it does not list
        flags = [f"--{name.replace('_', '-')}" for name in (unknown, *names)]
        raise ConfigError(f"unknown option {flags[0]}{nearest(flags[0], flags[1:])}")
    return {"arch": arch, **{names.get(key, key): value for key, value in options.items()}}


def _check(run: Run) -> None:
    """Raise ConfigError when training would not take the configuration of ``run``."""
    try:
        require_complete(build_config(run.configuration({"data": "DATA"})))
    except ConfigError as error:
        raise ConfigError(f"the options of {run.task}: {error}; they come from the recipe or --set") from None
