"""Recipes: YAML files that say how a model is fine-tuned on each task. Free of torch.

A file has these keys, all optional::

    about: one sentence, shown above the table
    extends: roberta            # a recipe to start from: its name, or a path relative to this file
    select: best                # which validation of a run counts: the best one, or the last
    average: tasks              # the mean over tasks, or over columns (both MNLI sets count, and the score alone)
    seeds: [1, 2, 3]            # the seeds in order; default 1, 2, 3, ...
    all: {epochs: 3, warmup: 0.1, batch_size: 16, lr: 2e-5, optimizer: adam}
    tasks:                      # what differs for single tasks
      CoLA: {epochs: 15, score: mcc}

``all`` and the entries of ``tasks`` hold options of ``fairseq-train`` (with ``_`` or ``-``; ``true`` gives a flag,
``false`` and ``null`` leave an option out) and these keys of their own:

``epochs`` or ``updates``   how long to train; the learning rate decays over all of it
``warmup``                  updates of linear warm-up, or below 1 the fraction of all updates
``score``                   the metric that decides, one of the task's own metrics
``start_from``              another task: start from its model of the same seed instead of the pretrained one
``grid``                    option -> list of values; every combination runs with every seed, and the one whose median
                            validation score over the seeds is highest counts
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.limits import read_yaml
from fairseq.registry import nearest

RECIPES = Path(__file__).resolve().parent / "recipes"
SELECT = ("best", "last")
AVERAGE = ("tasks", "columns")
_KEYS = ("about", "extends", "select", "average", "seeds", "all", "tasks")
_OWN = ("epochs", "updates", "warmup", "score", "start_from", "grid")

# Of a text that is no YAML; a value that looks like a date and is none is a ValueError, a thousand brackets a RecursionError.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

GridPoint = tuple[tuple[str, str], ...]
"""One combination of a grid: (option, value) pairs; empty without a grid."""


@dataclass(frozen=True)
class TaskRecipe:
    """What a recipe says of one task, everything merged: ``options`` are those of fairseq-train."""

    task: str
    options: dict[str, Any]
    epochs: float | None = None
    updates: int | None = None
    warmup: float = 0.0
    score: str | None = None
    start_from: str | None = None
    grid: dict[str, list[str]] = field(default_factory=dict)

    def points(self) -> list[GridPoint]:
        """Every combination of the grid, one empty combination without a grid."""
        return [tuple(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def length(
        self, rows: int, point: GridPoint = (), max_epoch: float | None = None, max_updates: int | None = None
    ) -> tuple[int, int]:
        """(updates, updates of warm-up) on ``rows`` training rows; limits shorten both in proportion."""
        options = {**self.options, **dict(point)}
        batch = _integer(options, "batch_size", self.task)
        frequency = _integer(options, "update_freq", self.task) or 1
        steps = math.ceil(math.ceil(rows / batch) / frequency) if batch else None
        if steps is None and (self.updates is None or max_epoch is not None):
            raise ConfigError(
                f"how many updates {self.task} takes depends on batch_size, which the recipe does not set; "
                "give it with --set batch_size=N, or the number of updates with --set updates=N"
            )
        total = self.updates if self.updates is not None else math.ceil((self.epochs or 0) * (steps or 0))
        warmup = self.warmup / total if self.warmup >= 1 else self.warmup
        if max_epoch is not None:
            total = min(total, math.ceil(max_epoch * (steps or 0)))
        if max_updates is not None:
            total = min(total, max_updates)
        return max(1, total), round(warmup * max(1, total))


@dataclass(frozen=True)
class Recipe:
    """A recipe file, with the ones it extends merged in."""

    name: str
    about: str = ""
    select: str = "best"
    average: str = "tasks"
    seeds: tuple[int, ...] = ()
    all: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def for_task(self, task: str, given: Mapping[str, Any] | None = None) -> TaskRecipe:
        """The merged settings of ``task``; ``given`` (from the command line) wins. Raises ConfigError."""
        merged: dict[str, Any] = {}
        for layer in (self.all, self.tasks.get(task, {}), given or {}):
            _merge(merged, layer)
        own = {key: value for key in _OWN if (value := merged.pop(key, None)) is not None}
        where = f"recipe {self.name}, task {task}"
        if "epochs" not in own and "updates" not in own:
            raise ConfigError(f"{where}: neither epochs nor updates says how long to train; set one of them")
        for key, kind in (("epochs", float), ("updates", int), ("warmup", float)):
            if key in own:
                own[key] = _number(own[key], key, where, kind)
        own["grid"] = _grid(own.get("grid"), where)
        return TaskRecipe(task, {key: value for key, value in merged.items() if value is not None}, **own)

    def first_seeds(self, count: int) -> list[int]:
        """``count`` seeds: the recipe's own first, then the smallest numbers that are not among them."""
        more = (number for number in itertools.count(1) if number not in self.seeds)
        return list(itertools.islice(itertools.chain(self.seeds, more), count))


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(name: str, tasks: Sequence[str] = ()) -> Recipe:
    """The recipe called ``name``, or in the file ``name``; its tasks must be among ``tasks`` (when given).

    Raises DataNotFoundError for an unknown name and ConfigError for a malformed file, naming file and key.
    """
    return _load(_find(name, None), tuple(tasks), ())


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``["lr=1e-4", "fp16=true"]`` as a dict, values read as YAML reads them. Raises ConfigError."""
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set takes KEY=VALUE, as in --set batch_size=32, but got {word!r}")
        try:
            found[_name(key)] = yaml.safe_load(value) if value else None
        except NOT_YAML:
            found[_name(key)] = value
    return found


def _find(name: str, beside: Path | None) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        path = beside / path if beside is not None else path
        if not path.is_file():
            raise DataNotFoundError(f"there is no recipe file {path}; the recipes by name are: {', '.join(names())}")
        return path
    if name not in names():
        raise DataNotFoundError(
            f"there is no recipe {name!r}{nearest(name, names()) or '.'} Recipes: {', '.join(names())}, "
            "or the path of a YAML file of your own"
        )
    return RECIPES / f"{name}.yaml"


def _load(path: Path, tasks: tuple[str, ...], seen: tuple[Path, ...]) -> Recipe:
    if path.resolve() in seen:
        raise ConfigError(f"recipe {path} extends itself: {' -> '.join(item.stem for item in (*seen, path))}")
    content = _read(path)
    base = Recipe(path.stem)
    if content.get("extends") is not None:
        base = _load(_find(str(content["extends"]), path.parent), tasks, (*seen, path.resolve()))
    every: dict[str, Any] = dict(base.all)
    own = _section(content.get("all"), f"{path}: all")
    _merge(every, own)
    single = {task: dict(settings) for task, settings in base.tasks.items()}
    for settings in single.values():  # what a file says wins over all that it extends
        _merge(settings, own)
    for task, settings in _section(content.get("tasks"), f"{path}: tasks", rename=False).items():
        if tasks and task not in tasks:
            raise ConfigError(
                f"{path}: unknown task {task!r}{nearest(task, list(tasks)) or '.'} Tasks: {', '.join(tasks)}"
            )
        _merge(single.setdefault(task, {}), _section(settings, f"{path}: {task}"))
    seeds = content.get("seeds") or list(base.seeds)
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds must be a list of different integers, but is {seeds!r}")
    return Recipe(
        path.stem,
        " ".join(str(content.get("about") or base.about).split()),
        _choice(content, "select", SELECT, base.select, path),
        _choice(content, "average", AVERAGE, base.average, path),
        tuple(seeds),
        every,
        single,
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path} must be a mapping with the keys {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            raise ConfigError(
                f"{path}: unknown key {key!r}{nearest(str(key), list(_KEYS)) or '.'} Keys: {', '.join(_KEYS)}"
            )
    return content


def _section(value: Any, where: str, rename: bool = True) -> dict[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping of settings, but is {value!r}")
    return {_name(key) if rename else str(key): item for key, item in value.items()}


def _choice(content: Mapping[str, Any], key: str, allowed: Sequence[str], default: str, path: Path) -> str:
    value = content.get(key) or default
    if value not in allowed:
        raise ConfigError(f"{path}: {key} must be {' or '.join(allowed)}, but is {value!r}")
    return str(value)


def _name(key: Any) -> str:
    return str(key).strip().lstrip("-").replace("-", "_")


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """``layer`` wins. A length of the other kind replaces the inherited one, and a warm-up keeps its fraction of it."""
    for kind, other in (("epochs", "updates"), ("updates", "epochs")):
        if layer.get(kind) is not None and layer.get(other) is None and into.get(other) is not None:
            if other == "updates" and into.get("warmup"):
                warmup, updates = (_number(into[name], name, "recipe", float) for name in ("warmup", "updates"))
                into["warmup"] = warmup / updates if warmup >= 1 else warmup
            del into[other]
    into.update(layer)
    if "grid" not in layer and isinstance(into.get("grid"), dict):
        into["grid"] = {key: values for key, values in into["grid"].items() if _name(key) not in layer}


_LARGEST = 1e9  # no training has more epochs or updates


def _number(value: Any, key: str, where: str, kind: type) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number <= _LARGEST or (key != "warmup" and number == 0):  # NaN is neither
        raise ConfigError(f"{where}: {key} must be a positive number, but is {value!r} (the most is {_LARGEST:g})")
    return number


def _integer(options: Mapping[str, Any], key: str, task: str) -> int | None:
    """A positive integer among the options of a task, the first of a comma-separated list; None if not given."""
    value = options.get(key)
    first = value[0] if isinstance(value, list) and value else value
    if first is None:
        return None
    text = str(first).split(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{task}: {key} must be an integer of at least 1, but is {value!r}")
    return int(text)


def _grid(value: Any, where: str) -> dict[str, list[str]]:
    lists = _section(value, f"{where}: grid")
    for key, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: grid: {key} must be a list of values, but is {values!r}")
    return {key: [str(item) for item in values] for key, values in lists.items()}
