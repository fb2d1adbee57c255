"""The files that a stored configuration names: stored absolute, and found where they are now.

A checkpoint is moved, copied and handed on, and old ones hold paths relative to a directory that nobody knows any
more. Every command that reads a configuration from a file looks in the same places. What a file names is never
downloaded, unless its address is the one that the encoder's own settings have by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq.dataclass.base import GROUPS, field_specs
from fairseq.errors import FairseqError
from fairseq.file_io import NOT_FETCHED, split_paths

ENCODERS = ("bpe", "tokenizer")  # the sections that name files
_ANCESTORS = 4  # how far above the checkpoint the relative paths of its training are looked for


def make_absolute(state: dict[str, Any]) -> dict[str, Any]:
    """The stored form ``state`` of a configuration with absolute paths (in place) of its data and the encoders' files."""
    task = state.get("task")
    if isinstance(task, dict) and isinstance(task.get("data"), str):
        parts = split_paths(task["data"])
        if all(os.path.isdir(part) for part in parts):
            task["data"] = os.pathsep.join(map(os.path.abspath, parts))
    for section in ENCODERS:
        for key, value in (state.get(section) or {}).items():
            if _names_file(key, value) and os.path.isfile(value):
                state[section][key] = os.path.abspath(value)
    return state


def relocate(cfg: DictConfig, checkpoint: str | os.PathLike[str], given: Collection[str] = ()) -> None:
    """Let ``cfg``, which ``checkpoint`` stores, name data and files where they are now (in place).

    Settings that were ``given`` stay; see `located` for the others.
    """
    file = Path(checkpoint)
    data = cfg.task.get("data") if isinstance(cfg.get("task"), DictConfig) else None
    directories = split_paths(data) if isinstance(data, str) and data else []
    if directories and "data" not in given:
        directories = [_find(part, file, os.path.isdir) or part for part in directories]
        with open_dict(cfg):
            cfg.task.data = ("|" if "://" in str(data) else os.pathsep).join(directories)
    for section in ENCODERS:
        node = cfg.get(section)
        if not isinstance(node, DictConfig):
            continue
        settings: Any = OmegaConf.to_container(node, resolve=False)
        stored = {key: value for key, value in settings.items() if key not in given}
        with open_dict(cfg):
            cfg[section] = settings | located(stored, section, file, directories)


def given_names(overrides: Mapping[str, Any]) -> set[str]:
    """The settings that ``overrides`` name, alone or in a section."""
    sections = [value for value in overrides.values() if isinstance(value, Mapping)]
    return {*overrides, *(key for section in sections for key in section)}


def located(
    settings: Mapping[str, Any], section: str, checkpoint: Path, directories: Collection[str] = ()
) -> dict[str, Any]:
    """The stored settings of an encoder with files where they are now.

    A file is where its path leads, else at the end of that path under a directory above the checkpoint, else beside the
    checkpoint or in one of the data ``directories``, by its own name; such a copy also stands in for an address. Other
    addresses than the encoder's own are marked, so that whoever needs the file refuses (`NOT_FETCHED`).
    """
    defaults = _defaults(section, settings.get("_name"))
    found = dict(settings)
    for key, value in settings.items():
        if not isinstance(value, str) or key.startswith("_") or value.startswith(NOT_FETCHED):
            continue
        if "://" in value:
            copy = _beside(value.rsplit("/", 1)[-1], checkpoint, directories)
            found[key] = copy or (value if value == defaults.get(key) else NOT_FETCHED + value)
        elif _names_file(key, value):
            found[key] = (
                _find(value, checkpoint, os.path.isfile) or _beside(Path(value).name, checkpoint, directories) or value
            )
    return found


def _names_file(key: str, value: Any) -> bool:
    return not key.startswith("_") and isinstance(value, str) and "://" not in value and bool(Path(value).suffix)


def _find(stored: str, checkpoint: Path, is_there: Callable[[Path], bool]) -> str | None:
    """Where the path ``stored`` is now: as it is, or under a directory above the checkpoint.

    A whole project may have been moved: then the last parts of an absolute path are there, as many as fit.
    """
    path = Path(stored)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    kept = range(len(parts), 0, -1) if path.is_absolute() else [len(parts)]
    above = list(checkpoint.resolve().parents)[:_ANCESTORS]
    places = (parent.joinpath(*parts[len(parts) - count :]) for count in kept for parent in above)
    return next((str(place.resolve()) for place in (path, *places) if is_there(place)), None)


def _beside(name: str, checkpoint: Path, directories: Collection[str]) -> str | None:
    places = (checkpoint.parent, *map(Path, directories))
    return next((str((place / name).resolve()) for place in places if name and os.path.isfile(place / name)), None)


def _defaults(section: str, name: Any) -> dict[str, Any]:
    """Key -> default of the settings of an encoder; none for one that is not known."""
    if not isinstance(name, str):
        return {}
    try:
        config = GROUPS[section].config_class(name)
    except FairseqError:  # of a plugin that is not there
        return {}
    return {} if config is None else {key: spec.default for key, spec in field_specs(config).items()}
