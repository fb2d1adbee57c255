"""The public functions of the old ``fairseq.dataclass.utils``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fairseq.dataclass.base import FieldSpec, field_specs
from fairseq.dataclass.build import build_config
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.dataclass.namespace import nest
from fairseq.dataclass.state import override
from fairseq.dataclass.values import convert, eval_str_list
from fairseq.errors import ConfigError
from fairseq.registry import nearest


def convert_namespace_to_omegaconf(args: argparse.Namespace) -> DictConfig:
    """The typed configuration for the flat Namespace of a parsed command line."""
    return build_config(nest(args))


def merge_with_parent(dc: Any, cfg: Any, remove_missing: bool = True) -> DictConfig:
    """``cfg`` checked against the dataclass (or instance) ``dc`` and completed with its defaults.

    With ``remove_missing`` keys that ``dc`` does not know are dropped, otherwise they are a ConfigError.
    """
    specs = field_specs(dc if isinstance(dc, type) else type(dc))
    merged = {name: (spec.default if isinstance(dc, type) else getattr(dc, name)) for name, spec in specs.items()}
    for key, value in _items(cfg).items():
        if key in specs:
            merged[key] = _value(specs[key], value, key)
        elif not remove_missing:
            raise ConfigError(f"unknown key {key!r}{nearest(key, list(specs))}")
    node = OmegaConf.create(merged)
    OmegaConf.set_struct(node, True)
    return node


def _value(spec: FieldSpec, value: Any, key: str) -> Any:
    return value if isinstance(value, str) and ("${" in value or value == "???") else convert(spec, value, key)


def _items(cfg: Any) -> dict[str, Any]:
    if OmegaConf.is_config(cfg):
        return OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)  # type: ignore[return-value]
    return dict(cfg) if isinstance(cfg, Mapping) else dict(vars(cfg))


def overwrite_args_by_name(cfg: DictConfig, overrides: Mapping[str, Any]) -> DictConfig:
    """Old interface: a copy of ``cfg`` in which every group that has a key of ``overrides`` takes the new value."""
    tree = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(tree, dict)
    return build_config(override({str(key): node for key, node in tree.items()}, overrides), stored=True)


__all__ = [
    "convert_namespace_to_omegaconf",
    "eval_str_list",
    "gen_parser_from_dataclass",
    "merge_with_parent",
    "overwrite_args_by_name",
]
