"""Between the flat Namespace of a command line (today's, or one stored in 2019) and the nested configuration."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.dataclass.base import FieldSpec, field_specs, is_interpolation
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.legacy import OUT_OF_SCOPE
from fairseq.dataclass.names import GROUPS, model_config_class
from fairseq.registry import ARCHITECTURES, MODELS

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
            known = name in registry or not stored
            tree[group] = _component(args, name, registry.config_class(name) if known else None, stored)
        else:
            tree[group] = name
    arch = getattr(args, "arch", None)
    if arch is not None:
        unknown = stored and arch not in ARCHITECTURES and arch not in MODELS
        tree["model"] = _model(args, arch, None if unknown else model_config_class(arch), stored)
    return tree


def _component(args: argparse.Namespace, name: str, cls: type | None, stored: bool) -> Any:
    if cls is None:
        flat = {**vars(args), "_name": name}
        return flat if stored else argparse.Namespace(**flat)
    return {"_name": name, **_taken(args, field_specs(cls), stored)}


def _model(args: argparse.Namespace, arch: str, cls: type | None, stored: bool) -> Any:
    node = _component(args, arch, cls, stored)
    if cls is None:
        return node
    node = {key: value for key, value in node.items() if value is not None}
    for key in OUT_OF_SCOPE["model"]:
        if hasattr(args, key):
            node.setdefault(key, getattr(args, key))
    # The original handed the model the whole Namespace, where its position table followed the length of the samples.
    length = getattr(args, "tokens_per_sample", None)
    if "max_positions" in field_specs(cls) and "max_positions" not in node and length is not None:
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
    for name, value in list(vars(args).items()):
        if name == "log_keys" and value is None:
            delattr(args, name)
    return args
