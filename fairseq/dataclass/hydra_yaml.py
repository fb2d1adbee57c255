"""What hydra is given: the schema of defaults, the user's YAML file, and the overrides in a form hydra always accepts.

Hydra composes plain values; keys and types are checked afterwards by :func:`fairseq.dataclass.build.build_config`, the
same code as for flags. That is why every override of a setting becomes ``++key=value`` (set, whether or not the YAML
file mentions it): a misspelt key is then reported with the nearest name instead of a message about structs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq.dataclass.base import GROUPS, MISSING, field_specs
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.legacy import STORED_SECTIONS
from fairseq.errors import ConfigError
from fairseq.limits import read_yaml, reference_excess
from fairseq.registry import nearest

BUNDLED = Path(__file__).resolve().parent.parent / "config"
DEFAULT_NAME = "config"
_COMPONENTS = ("model", *GROUPS)
_ROOTS = (*SECTIONS, *_COMPONENTS, *STORED_SECTIONS)
_OVERRIDE = re.compile(r"(?P<mode>~|\+\+|\+)?(?P<key>[^=@]+?)(?P<package>@[^=]*)?(?:=(?P<value>.*))?", re.DOTALL)
_NAMES = re.compile(r"[\w\-]+(,[\w\-]+)*")


@dataclass
class Primary:
    """The user's YAML file, taken apart: ``content`` are settings, ``defaults`` and ``hydra`` are for hydra."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    defaults: list[Any] = field(default_factory=list)
    hydra: dict[str, Any] = field(default_factory=dict)


def schema() -> dict[str, Any]:
    """The defaults of the fixed sections, references to other settings still as ``${...}``.

    Those that depend on the machine are left out: the jobs of a sweep may run on another one than this.
    """
    return {
        section: {
            name: spec.asked for name, spec in field_specs(cls).items() if name != "_name" and not spec.is_found_out
        }
        for section, cls in SECTIONS.items()
    }


def find_primary(config_dir: str | None, config_name: str | None) -> Path:
    """The YAML file called ``config_name`` in ``config_dir`` (without one: the bundled ``config.yaml``)."""
    name = (config_name or DEFAULT_NAME).removesuffix(".yaml")
    folder = Path(config_dir) if config_dir is not None else BUNDLED
    if not folder.is_dir():
        raise ConfigError(f"configuration directory {str(folder)!r} does not exist")
    path = folder / f"{name}.yaml"
    if not path.is_file() and config_name is None:
        path = BUNDLED / f"{DEFAULT_NAME}.yaml"
    if not path.is_file():
        known = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
        hint = nearest(name, known) or "."
        raise ConfigError(f"no {name}.yaml in {str(folder)!r}{hint} There: {', '.join(known[:20]) or 'no YAML files'}")
    return path


def read_primary(path: Path, including: tuple[Path, ...] = ()) -> Primary:
    """Read a YAML file and the files beside it that its ``defaults`` list names; groups in that list are left to hydra.

    The ``# @package`` header means nothing here, because these files always stand for the root. The file's own settings
    win over its defaults unless ``_self_`` in the list says otherwise.
    """
    if path in including:
        raise ConfigError(f"{path} includes itself through its defaults list")
    tree = _load(path)
    defaults = _defaults(tree.pop("defaults", None), path)
    hydra = tree.pop("hydra", None) or {}
    if not isinstance(hydra, Mapping):
        raise ConfigError(f"hydra in {path} must be a group of settings (key: value), but is {hydra!r}")
    primary = Primary(path=path, hydra=dict(hydra))
    own = {key: _component(key, value, path, known_only=not defaults) for key, value in tree.items()}
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            primary.content = _merge(primary.content, own)
        elif isinstance(entry, str) and (path.parent / f"{entry.removesuffix('.yaml')}.yaml").is_file():
            included = read_primary(path.parent / f"{entry.removesuffix('.yaml')}.yaml", (*including, path))
            primary.content = _merge(primary.content, included.content)
            primary.hydra = _merge(included.hydra, primary.hydra)
            primary.defaults += included.defaults
        else:
            primary.defaults.append(entry)
    return primary


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
        if isinstance(content, dict):  # and harmless: omegaconf would write out values that repeat each other
            content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:  # a key that stands there twice
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold groups of settings (key: value), but holds {type(content).__name__}")
    wrong = reference_excess(content)
    if wrong is not None:
        raise ConfigError(f"{path} holds {wrong}")
    return {str(key): value for key, value in content.items()}


def _defaults(value: Any, path: Path) -> list[Any]:
    """The ``defaults`` list of the file ``path``: names, and dictionaries of one group and its choices."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"defaults in {path} must be a list of names and of group: name, but is {value!r:.80}")
    for entry in value:
        if not (isinstance(entry, str) and entry) and not _is_choice(entry):
            raise ConfigError(f"defaults in {path} may hold names and group: name, but has {entry!r:.80}")
    return value


def _is_choice(entry: Any) -> bool:
    """``group: name``, where several names, and none (null), may be given."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return False
    ((group, names),) = entry.items()
    names = names if isinstance(names, list) else [names]
    return (
        isinstance(group, str) and bool(group.strip()) and all(name is None or isinstance(name, str) for name in names)
    )


def _component(key: str, value: Any, path: Path, known_only: bool) -> Any:
    """The value of a top-level ``key``; a component given by its name alone becomes ``{_name: ...}``."""
    if known_only and key not in _ROOTS and key not in ("_name", "job_logging_cfg"):
        raise ConfigError(f"unknown configuration section {key!r} in {path}{nearest(key, list(_ROOTS))}")
    if key in SECTIONS and value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{key} in {path} must be a group of settings (key: value), but is {value!r}")
    return {"_name": value} if key in _COMPONENTS and isinstance(value, str) and value != MISSING else value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(below), OmegaConf.create(above)), resolve=False)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def normalize_overrides(overrides: Iterable[str], primary: Primary) -> list[str]:
    """The overrides as hydra is to see them; choices of a component (``optimizer=sgd``) replace it in ``primary``."""
    return [_normalize(text, primary) for text in overrides]


def normalize_sweep(primary: Primary) -> None:
    """The values to sweep over that stand in the file, as overrides: see `normalize_overrides`."""
    sweeper = primary.hydra.get("sweeper")
    if isinstance(sweeper, Mapping) and isinstance(sweeper.get("params"), Mapping):
        words = [_normalize(f"{key}={value}", primary) for key, value in sweeper["params"].items()]
        primary.hydra["sweeper"] = {**sweeper, "params": dict(word.split("=", 1) for word in words)}


def _normalize(text: str, primary: Primary) -> str:
    match = _OVERRIDE.fullmatch(text)
    if match is None or match["package"] or "/" in match["key"] or match["key"].split(".")[0] == "hydra":
        return text
    mode, key, value = match["mode"] or "", match["key"], match["value"]
    if value is None:
        if mode == "~":
            return text
        raise ConfigError(f"override {text!r} has no value: write {key}=value")
    root = key.split(".")[0]
    if root not in _ROOTS:
        if primary.defaults or (primary.path.parent / root).is_dir():
            return text  # the user's own config group
        raise ConfigError(f"unknown configuration section {root!r} in override {text!r}{nearest(root, list(_ROOTS))}")
    if mode == "~":
        return text
    if key in _COMPONENTS and _NAMES.fullmatch(value) and value.lower() not in ("null", "none"):
        if (primary.path.parent / key).is_dir():
            return text
        node = primary.content.get(key)
        if "," not in value and (not isinstance(node, Mapping) or node.get("_name") != value):
            primary.content[key] = {"_name": value}
        return f"++{key}._name={value}"
    if value.startswith("("):
        value = '"' + value.replace('"', '\\"') + '"'  # hydra's grammar has no tuples
    return f"++{key}={value}"
