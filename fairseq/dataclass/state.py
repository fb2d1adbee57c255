"""The configuration as checkpoints store it: the original's sections, keys and types, read and written."""

from __future__ import annotations

import argparse
import copy
import logging
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from fairseq.dataclass import legacy
from fairseq.dataclass.base import GROUPS, field_specs, is_interpolation
from fairseq.dataclass.build import ORDER, as_plain, build_config, nest, upgrade_args
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.slots import architecture_values, model_specs
from fairseq.errors import FairseqError

logger = logging.getLogger(__name__)


def config_to_state(cfg: Any) -> dict[str, Any]:
    """``cfg`` (of :func:`~fairseq.dataclass.build.build_config`) as the plain dict that a checkpoint holds.

    Sections that this project has not (``bmuf``, ``generation``, ...) are written with their defaults, so that the
    original reads the file; a key that the original does not know is written only when it is not at its default.
    """
    state: dict[str, Any] = {"_name": None}
    for section in ORDER:
        if section in legacy.STORED_SECTIONS:
            state[section] = copy.deepcopy(legacy.STORED_SECTIONS[section])
        else:
            node = getattr(cfg, section, None)
            if section == "job_logging_cfg" and node is None:
                continue
            state[section] = _without_new_defaults(section, copy.deepcopy(as_plain(node, resolve=True)))
    state["bmuf"]["distributed_world_size"] = state["distributed_training"]["distributed_world_size"]
    return state


def changed_settings(cfg: Any) -> dict[str, Any]:
    """``section.key`` -> value of what ``cfg`` has other than by default; of a component also its name, as ``task``.

    A setting that follows another one is left out while it does.
    """
    state, changed = config_to_state(cfg), {}
    for section in ORDER:
        node = state.get(section)
        if section in legacy.STORED_SECTIONS or section == "job_logging_cfg" or not isinstance(node, dict):
            continue
        if node.get("_name"):
            changed[section] = node["_name"]
        specs = _specs(section, node)
        for key, value in node.items():
            default = specs[key].default if key in specs else None
            source = _FOLLOWED.search(str(default)) if is_interpolation(default) else None
            if source is not None:
                default = (state.get(source[1]) or {}).get(source[2], value)
            if key != "_name" and value != default:
                changed[f"{section}.{key}"] = value
    return changed


_FOLLOWED = re.compile(r"(\w+)\.(\w+)(?=[,}])")  # section and key of ${section.key}, ${oc.select:section.key,otherwise}


def _without_new_defaults(section: str, node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    specs = _specs(section, node)
    # What the architecture would fill with another value than the default has to be stored, the default too.
    preset = architecture_values(node.get("_name")) if section == "model" else {}

    def is_needed(key: str, value: Any) -> bool:
        spec = specs.get(key)
        return spec is None or not spec.is_new or not value == spec.default == preset.get(key, value)

    return {key: value for key, value in node.items() if is_needed(key, value)}


def _specs(section: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The known settings of a stored section or component; none for one that is not known."""
    name = node.get("_name")
    if section in SECTIONS:
        return field_specs(SECTIONS[section])
    if not isinstance(name, str) or section not in ("model", *GROUPS):
        return {}
    try:
        if section == "model":
            return model_specs(name, node) or {}
        cls = GROUPS[section].config_class(name)
    except FairseqError:
        return {}
    return field_specs(cls) if cls is not None else {}


def config_from_state(stored: Any, overrides: Mapping[str, Any] | None = None) -> DictConfig:
    """The configuration of a checkpoint: ``stored`` is its ``cfg`` (nested) or, from 2019, its ``args`` Namespace.

    Unknown keys are dropped with one warning. ``overrides`` (key -> value) replace that key in every group that has
    it; a component's name (``bpe="gpt2"``) selects it with its defaults, which further overrides may change.
    """
    overrides = dict(overrides or {})
    if isinstance(stored, argparse.Namespace):
        args = upgrade_args(argparse.Namespace(**{**vars(stored), **overrides}))
        tree = nest(args, stored=True)
    else:
        tree = _read_tree(stored)
    return build_config(override(tree, overrides), stored=True)


def _read_tree(stored: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for section, node in as_plain(stored).items():
        own = copy.deepcopy(as_plain(node))
        tree[section] = _known_only(section, own) if isinstance(node, argparse.Namespace) else own
    return tree


def _known_only(section: str, node: dict[str, Any]) -> dict[str, Any]:
    """Of a flat Namespace that stands for one component, what belongs to it (when its settings are known)."""
    specs = _specs(section, node)
    if not specs:
        return node
    scope = legacy.OUT_OF_SCOPE.get(section, {})
    return {key: value for key, value in node.items() if key in specs or key in scope or key == "_name"}


def override(tree: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with ``overrides`` applied: every group that has (or by its dataclass knows) a key takes the new value."""
    tree = dict(tree)
    rest = dict(overrides)
    for group in (*GROUPS, "model"):
        if isinstance(rest.get(group), str):
            name = rest.pop(group)
            if group == "model" or not isinstance(tree.get(group), dict) or tree[group].get("_name") != name:
                tree[group] = {**(tree.get(group) or {}), "_name": name} if group == "model" else {"_name": name}
    used = set()
    for section in ORDER:
        node = tree.get(section)
        if isinstance(rest.get(section), Mapping):
            node = {**(node or {}), **rest[section]}
            used.add(section)
        if node is None and section in SECTIONS:
            node = {}
        elif not isinstance(node, dict):
            continue
        specs = _specs(section, node)
        # By the names of the flags: mask_prob is the task's, the model's is model_mask_prob.
        keys = {specs[key].dest if key in specs else key: key for key in ({*node, *specs} - {"_name"})}
        taken = {key: value for key, value in rest.items() if key in keys}
        used.update(taken)
        tree[section] = {**node, **{keys[key]: value for key, value in taken.items()}}
    for key in rest.keys() - used:
        logger.info("override %s=%r matches no setting of the stored configuration", key, rest[key])
    return tree
