"""From the settings somebody gave to the complete, typed, resolved configuration of a run.

Every entrance (flags, YAML, stored checkpoints, Python) ends here, so the same settings give the same configuration:
defaults filled in, keys checked against the dataclasses, ``${...}`` resolved, values converted to their types. `nest`
goes between the flat Namespace of a command line (today's, or one stored in 2019) and the nested configuration.

The result is an omegaconf ``DictConfig`` locked against unknown keys, except ``model``: that node holds only the keys
that were given, and the architecture function fills in the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq.dataclass import legacy
from fairseq.dataclass.base import (
    GROUPS,
    MISSING,
    FieldSpec,
    coerce,
    convert,
    field_specs,
    is_interpolation,
    model_config_class,
)
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.legacy import OUT_OF_SCOPE
from fairseq.dataclass.slots import architecture_values, model_specs, not_chosen
from fairseq.errors import ConfigError
from fairseq.limits import reference_excess
from fairseq.registry import ARCHITECTURES, MODELS, nearest

logger = logging.getLogger(__name__)

# The order in which checkpoints store the sections.
ORDER = (
    *[name for name in SECTIONS if name != "ema"],
    *legacy.STORED_SECTIONS,
    "model",
    *GROUPS,
    "ema",
    "job_logging_cfg",
)
# Settings of how a run is executed: those of a stored run do not bind whoever loads its model.
_RUN_SECTIONS = ("common", "distributed_training", "optimization", *legacy.STORED_SECTIONS)


def build_config(given: Mapping[str, Any], *, stored: bool = False) -> DictConfig:
    """The complete configuration for the ``given`` settings, a nested mapping section -> key -> value.

    With ``stored`` (the configuration of a checkpoint) unknown keys are dropped with one warning and unknown
    components kept as they are; otherwise both are a ConfigError that names the nearest known spelling.
    """
    return _Builder(stored).build(given)


class _Builder:
    """One conversion; collects what it had to drop."""

    def __init__(self, stored: bool) -> None:
        self.stored = stored
        self.dropped: list[str] = []
        self.specs: dict[str, dict[str, FieldSpec]] = {}
        self.model_class: type | None = None
        self.opaque: dict[str, argparse.Namespace] = {}

    def build(self, given: Mapping[str, Any]) -> DictConfig:
        self._check_top(given)
        tree: dict[str, Any] = {"_name": None}
        for name in ORDER:
            if name in legacy.STORED_SECTIONS:
                continue
            if name in SECTIONS:
                tree[name] = self._section(name, given.get(name) or {})
            elif name == "model":
                tree[name] = self._model(given.get(name))
            elif name in GROUPS:
                tree[name] = self._component(name, given.get(name))
            elif given.get(name) is not None:
                tree[name] = as_plain(given[name])
        _imply_precision(tree["common"])
        tree = self._convert(_resolve(tree))
        _finish(tree)
        check_given = getattr(self.model_class, "check_given", None)
        if check_given is not None and not self.stored:
            check_given(tree["model"])
        if self.dropped:
            logger.warning("ignoring settings of the stored configuration: %s", ", ".join(self.dropped))
        cfg = OmegaConf.create({**tree, **self.opaque}, flags={"allow_objects": True})
        OmegaConf.set_struct(cfg, True)
        if isinstance(tree["model"], dict) and "model" not in self.opaque:
            OmegaConf.set_struct(cfg.model, False)
        return cfg

    def _check_top(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in ORDER and name != "_name":
                self._unknown(str(name), "configuration section", list(ORDER))
        for name, defaults in legacy.STORED_SECTIONS.items():
            for key, value in _mapping(name, given.get(name) or {}).items():
                if key not in defaults:
                    self._unknown(f"{name}.{key}", "key", list(defaults))
                elif not self.stored:
                    legacy.check_value(name, key, value)

    def _section(self, name: str, node: Any) -> dict[str, Any]:
        self.specs[name] = field_specs(SECTIONS[name])
        return self._merge(name, self.specs[name], _mapping(name, node), fill=True)

    def _component(self, group: str, node: Any) -> dict[str, Any] | None:
        registry = GROUPS[group]
        values = _named(group, node)
        if values is None and group == "lr_scheduler" and not self.stored:
            values = {"_name": "fixed"}
        if values is None or (group == "scoring" and values["_name"] == "bleu"):
            return None
        name = values["_name"]
        if self.stored and name not in registry:
            return values
        cls = registry.config_class(name)
        if cls is None:
            return self._free(group, node, values)
        self.specs[group] = field_specs(cls)
        return self._merge(group, self.specs[group], values, fill=True)

    def _model(self, node: Any) -> Any:
        values = _named("model", node)
        if values is None:
            return None
        name = values["_name"]
        if self.stored and name not in ARCHITECTURES and name not in MODELS:
            return values
        self.model_class = model_config_class(name)
        specs = model_specs(name, values)
        if specs is None:
            return self._free("model", node, values)
        self.specs["model"] = specs
        followed = {key: spec.default for key, spec in specs.items() if spec.is_new and is_interpolation(spec.default)}
        return self._merge("model", specs, {**followed, **values}, fill=False)

    def _free(self, group: str, node: Any, values: dict[str, Any]) -> dict[str, Any]:
        """A component without a dataclass takes any keys; one from the command line stays the flat Namespace."""
        if isinstance(node, argparse.Namespace) and not self.stored:
            self.opaque[group] = argparse.Namespace(**{**vars(node), "_name": values["_name"]})
            return {"_name": values["_name"]}
        return values

    def _merge(
        self, section: str, specs: Mapping[str, FieldSpec], given: Mapping[str, Any], fill: bool
    ) -> dict[str, Any]:
        """``given`` checked against ``specs``; with ``fill`` over their defaults."""
        merged = {name: spec.default for name, spec in specs.items()} if fill else {}
        for key, value in given.items():
            key = str(key)
            if key not in specs and key in legacy.RENAMED.get(section, {}):
                renamed = legacy.RENAMED[section][key]
                if renamed is None:
                    continue
                key = renamed
            if key not in specs and key != "_name":
                if not legacy.is_out_of_scope(section, key):
                    self._unknown(f"{section}.{key}", "key", list(specs))
                    continue
                self._check_scope(section, key, value)
                continue
            if self.stored and isinstance(value, str) and value == MISSING:  # nobody is there to be asked
                continue
            merged[key] = as_plain(value)
        return merged

    def _unknown(self, path: str, kind: str, known: list[str]) -> None:
        if self.stored:
            self.dropped.append(path)
            return
        section, _, key = path.rpartition(".")
        hint = nearest(key, [name for name in known if name != "_name"])
        if section == "model":
            hint = not_chosen(self.model_class, key) or hint
        raise ConfigError(f"unknown {kind} {path!r}{hint}")

    def _check_scope(self, section: str, key: str, value: Any) -> Any:
        """``value`` unless it asks for something out of scope; a stored run's execution settings are reset instead."""
        try:
            legacy.check_value(section, key, value)
        except NotImplementedError:
            if not self.stored or section not in _RUN_SECTIONS:
                raise
            self.dropped.append(f"{section}.{key}={value!r}")
            spec = self.specs.get(section, {}).get(key)
            return spec.default if spec is not None else None
        return value

    def _convert(self, tree: dict[str, Any]) -> dict[str, Any]:
        for section, specs in self.specs.items():
            for key, value in tree[section].items():
                if value == MISSING and isinstance(value, str):
                    continue
                if key in specs:
                    value = convert(specs[key], value, f"{section}.{key}", stored=self.stored)
                tree[section][key] = self._check_scope(section, key, value)
        return tree


def as_plain(value: Any, resolve: bool = False) -> Any:
    """omegaconf containers (``resolve``: their ``${...}`` too), dataclasses, Namespaces, tuples as dicts and lists."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=resolve, enum_to_str=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_plain(getattr(value, item.name), resolve) for item in dataclasses.fields(value)}
    if isinstance(value, argparse.Namespace):
        return dict(vars(value))
    return list(value) if isinstance(value, tuple) else value


def _mapping(section: str, node: Any) -> dict[str, Any]:
    node = as_plain(node)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{section} must be a group of settings, but is {node!r}")
    return {str(key): value for key, value in node.items()}


def _named(group: str, node: Any) -> dict[str, Any] | None:
    """A component's node as a dict with ``_name`` first; a plain string is the name alone."""
    if node is None or (isinstance(node, str) and node == MISSING):
        return None
    values = {"_name": node} if isinstance(node, str) else _mapping(group, node)
    if not values:
        return None
    if not isinstance(values.get("_name"), str) or values["_name"] == MISSING:
        raise ConfigError(f"{group} needs a name: write {group}: {{_name: ...}}")
    return {"_name": values["_name"], **values}


def _imply_precision(common: dict[str, Any]) -> None:
    """memory_efficient_x implies x; done before interpolation because other sections mirror these keys."""
    for kind in ("fp16", "bf16"):
        efficient = common[f"memory_efficient_{kind}"]
        if not is_interpolation(efficient) and coerce(efficient, bool, f"common.memory_efficient_{kind}"):
            common[kind] = True


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    wrong = reference_excess(tree)
    if wrong is not None:
        raise ConfigError(f"the settings hold {wrong}")
    try:
        resolved = OmegaConf.to_container(
            OmegaConf.create(tree, flags={"allow_objects": True}), resolve=True, enum_to_str=True
        )
    except OmegaConfBaseException as error:
        key = f"{error.full_key!s}: " if error.full_key is not None else ""
        raise ConfigError(f"{key}{str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _finish(tree: dict[str, Any]) -> None:
    """What follows from other settings, and combinations that cannot be."""
    common, dataset = tree["common"], tree["dataset"]
    if common["amp"] and common["fp16"]:
        raise ConfigError("common.amp and common.fp16 exclude each other: choose one")
    for key in ("max_tokens", "batch_size"):
        if dataset[f"{key}_valid"] is None:
            dataset[f"{key}_valid"] = dataset[key]


def require_complete(cfg: DictConfig) -> None:
    """ConfigError naming the first mandatory setting that is still ``???``."""
    for section, node in cfg.items_ex(resolve=False):
        if isinstance(node, DictConfig):
            for key in node:
                if OmegaConf.is_missing(node, key):
                    raise ConfigError(f"{section!s}.{key!s} is mandatory (???): give {section!s}.{key!s}=...")


_ABSENT = object()


def nest(args: argparse.Namespace, *, stored: bool = False) -> dict[str, Any]:
    """The settings in ``args`` as section -> key -> value, for :func:`~fairseq.dataclass.build.build_config`.

    A Namespace that fairseq's parser made holds model settings under their flags' names; a ``stored`` one under the
    field names. Attributes that no section knows are left out. A component without a dataclass gets all of ``args``.
    """
    tree: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        tree[section] = _taken(args, field_specs(cls), stored)
        for key in OUT_OF_SCOPE.get(section, {}):
            if hasattr(args, key):
                tree[section].setdefault(key, getattr(args, key))
    for group, registry in GROUPS.items():
        name = getattr(args, group, None)
        if name is None or (group == "scoring" and name == "bleu"):
            continue  # the original's parser always chose a scorer, for generation only
        if isinstance(name, str):
            config = registry.config_class(name) if name in registry or not stored else None
            tree[group] = _component(args, name, None if config is None else field_specs(config), stored)
        else:
            tree[group] = name
    arch = getattr(args, "arch", None)
    if arch is not None:
        unknown = stored and arch not in ARCHITECTURES and arch not in MODELS
        tree["model"] = _model(args, arch, None if unknown else model_specs(arch, vars(args)), stored)
    return tree


def _component(args: argparse.Namespace, name: str, specs: dict[str, FieldSpec] | None, stored: bool) -> Any:
    if specs is None:
        flat = {**vars(args), "_name": name}
        return flat if stored else argparse.Namespace(**flat)
    return {"_name": name, **_taken(args, specs, stored)}


def _model(args: argparse.Namespace, arch: str, specs: dict[str, FieldSpec] | None, stored: bool) -> Any:
    node = _component(args, arch, specs, stored)
    if specs is None:
        return node
    node = {key: value for key, value in node.items() if value is not None}
    for key in OUT_OF_SCOPE["model"]:
        if hasattr(args, key):
            node.setdefault(key, getattr(args, key))
    # The original handed the model the whole Namespace, where its position table followed the length of the samples.
    length = getattr(args, "tokens_per_sample", None)
    chosen = "max_positions" in node or architecture_values(arch).get("max_positions") is not None
    if "max_positions" in specs and not chosen and length is not None:
        node["max_positions"] = length
    return node


def _taken(args: argparse.Namespace, specs: dict[str, FieldSpec], stored: bool) -> dict[str, Any]:
    values = {}
    for key, spec in specs.items():
        value = getattr(args, key if stored else spec.dest, _ABSENT)
        # A flag that mirrors another setting is None until it is given.
        if key.startswith("_") or value is _ABSENT or (value is None and is_interpolation(spec.default)):
            continue
        values[key] = value
    return values


def upgrade_args(args: argparse.Namespace) -> argparse.Namespace:
    """Rename and repair the options of old versions, in place (2019's ``args`` and later ones)."""
    if getattr(args, "max_positions", None) is not None and not hasattr(args, "max_source_positions"):
        args.max_source_positions = args.max_target_positions = args.max_positions
    if getattr(args, "task", None) is None:
        args.task = "translation"
    if getattr(args, "raw_text", False):
        args.dataset_impl = "raw"
    elif getattr(args, "lazy_load", False):
        args.dataset_impl = "lazy"
    for old, new in (
        ("remove_bpe", "post_process"),
        ("max_sentences", "batch_size"),
        ("max_sentences_valid", "batch_size_valid"),
    ):
        if hasattr(args, old) and getattr(args, new, None) is None:
            setattr(args, new, getattr(args, old))
    if hasattr(args, "min_lr") and not hasattr(args, "stop_min_lr"):
        # Before 2020 this was the learning rate that ends training.
        args.stop_min_lr = args.min_lr
        del args.min_lr
    if isinstance(getattr(args, "lr", None), (int, float)):
        args.lr = [args.lr]
    if isinstance(getattr(args, "update_freq", None), (int, float)):
        args.update_freq = [int(args.update_freq)]
    if isinstance(getattr(args, "data", None), (list, tuple)) and args.data:
        args.data = args.data[0]
    if getattr(args, "log_keys", ()) is None:
        del args.log_keys
    return args


def convert_namespace_to_omegaconf(args: argparse.Namespace) -> DictConfig:
    """The typed configuration for the flat Namespace of a parsed command line."""
    return build_config(nest(args))
