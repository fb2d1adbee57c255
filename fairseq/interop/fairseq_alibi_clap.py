"""Checkpoints of the ALiBi and CLAP fork of fairseq, which are this project's own, and of upstream fairseq 0.12.

The weights have the same names. The fork's files differ in settings that upstream refuses (``task.omit_mask``) or does
not know, and in models that upstream has not: those cannot be converted.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.reader import load_checked
from fairseq.dataclass import legacy
from fairseq.dataclass.base import field_specs
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.slots import slots_of, variant_specs
from fairseq.errors import CheckpointError
from fairseq.interop.portable import PortableModel
from fairseq.models.roberta.config import RobertaConfig
from fairseq.registry import FORMATS

logger = logging.getLogger(__name__)

# Keys that only the fork has, with their defaults; a model or task that needs another value is not upstream's.
MODEL_KEYS: dict[str, Any] = {
    "encoder_alibi": False,
    "encoder_alibi_asymmetrical": False,
    "contrastive_pretraining": False,
    "initial_beta": 1.0,
    "zero_masking": False,
    "mask_prob": 0.0,
    "l2norm_embedding": True,
}
TASK_KEYS: dict[str, Any] = {"omit_mask": False}
_REMOVED_TASK_KEYS = ("omit_mask_and_pad", "omit_unk")
_INEXPRESSIBLE = {
    "model.encoder_alibi": "ALiBi",
    "model.contrastive_pretraining": "CLAP head",
    "model.zero_masking": "zero masking",
    "task.omit_mask": "dictionary without <mask>",
    "task.omit_mask_and_pad": "dictionary without <mask>",
}
UNSEEN = ("attention_backend",)  # our settings that do not change the model
# Keys that only upstream's last version has: section -> keys; the fork refuses them.
_UPSTREAM_KEYS = {
    "task": ("include_index", "skip_masking", "d2v2_multi", "rebuild_batches"),
    "optimization": ("debug_param_names",),
    "criterion": ("report_mcc", "report_acc_and_f1", "report_pearson_and_spearman"),
}


@FORMATS.register("fairseq-alibi-clap")
class AlibiClapFile:
    """A checkpoint file of the fork, or of this project."""

    @staticmethod
    def read(path: Path, special: Mapping[str, int]) -> PortableModel:
        return PortableModel(load_checked(path))

    @staticmethod
    def write(model: PortableModel, path: Path) -> None:
        atomic_save(dict(model.state), path)


@FORMATS.register("fairseq-upstream")
class UpstreamFile:
    """A checkpoint file of upstream fairseq."""

    @staticmethod
    def read(path: Path, special: Mapping[str, int]) -> PortableModel:
        return PortableModel(from_upstream(load_checked(path)))

    @staticmethod
    def write(model: PortableModel, path: Path) -> None:
        atomic_save(to_upstream(model.state), path)


def to_upstream(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state``, a checkpoint of the fork or of this project, as upstream reads it; the given one stays as it is.

    Raises CheckpointError for a model or task that upstream cannot express.
    """
    state = _copied(state)
    cfg = _configuration(state)
    needs = {
        what: f"{path}={_get(cfg, path)}"
        for path, what in _INEXPRESSIBLE.items()
        if _get(cfg, path) not in (None, False)
    }
    needs |= {key: f"model.{key}={value}" for key, value in _variants(cfg).items()}
    if any(key.endswith("lm_head.beta") for key in state["model"]):
        needs.setdefault("CLAP head", "encoder.lm_head.beta")
    if needs:
        listed = ", ".join(f"no {what} ({where})" for what, where in needs.items())
        raise CheckpointError(f"upstream fairseq cannot express this model: it has {listed}")
    _drop(cfg.get("model"), (*MODEL_KEYS, *UNSEEN))
    _drop(cfg.get("task"), (*TASK_KEYS, *_REMOVED_TASK_KEYS))
    _drop_ours(cfg)
    # Upstream keeps nothing of sinusoidal positions in its files.
    for key in [key for key in state["model"] if key.endswith("embed_positions._float_tensor")]:
        del state["model"][key]
    return state


def from_upstream(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state``, a checkpoint of upstream, as the fork and this project read it; the given one stays as it is.

    Raises OutOfScopeError for settings that only upstream has and that are not at their defaults.
    """
    state = _copied(state)
    cfg = _configuration(state)
    for section, keys in _UPSTREAM_KEYS.items():
        for key in keys:
            if _get(cfg, f"{section}.{key}") is not None and section != "criterion":
                legacy.check_value(section, key, _get(cfg, f"{section}.{key}"))
        _drop(cfg.get(section), keys)
    for section, defaults in (("model", MODEL_KEYS), ("task", TASK_KEYS)):
        node = cfg.get(section)
        if isinstance(node, dict):
            for key, value in defaults.items():
                node.setdefault(key, value)
    return state


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``state`` that shares its tensors. Raises CheckpointError when it is not a fairseq checkpoint."""
    if not isinstance(state.get("model"), Mapping) or not (state.get("cfg") or state.get("args")):
        raise CheckpointError("this is no fairseq checkpoint: it lacks the weights ('model') or the settings ('cfg')")
    copied = {**state, "model": type(state["model"])(state["model"])}
    if state.get("cfg"):
        copied["cfg"] = {name: _copied_node(node) for name, node in state["cfg"].items()}
    return copied


def _copied_node(node: Any) -> Any:
    if isinstance(node, argparse.Namespace):
        return argparse.Namespace(**vars(node))
    return dict(node) if isinstance(node, Mapping) else node


def _configuration(state: dict[str, Any]) -> dict[str, Any]:
    """The sections of the settings; of a file of 2019, which is older than anything to convert, none."""
    return state.get("cfg") or {}


def _variants(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The slots and options of variants in the model section: such keys are stored only where they change the model."""
    names = {key for key, spec in field_specs(RobertaConfig).items() if spec.is_new and key not in UNSEEN}
    for registry in slots_of(RobertaConfig).values():
        for name in registry.names():
            names |= variant_specs(registry, name).keys()
    found = {key: _get(cfg, f"model.{key}") for key in sorted(names)}
    return {key: value for key, value in found.items() if value is not None}


def _get(cfg: Mapping[str, Any], path: str) -> Any:
    section, _, key = path.partition(".")
    node = cfg.get(section)
    return node.get(key) if isinstance(node, Mapping) else getattr(node, key, None)


def _drop(node: Any, keys: Any) -> None:
    values: MutableMapping[str, Any] = node if isinstance(node, dict) else getattr(node, "__dict__", {})
    for key in keys:
        values.pop(key, None)


def _drop_ours(cfg: dict[str, Any]) -> None:
    """Drop what this project added to the fixed sections; such keys are stored only when they are not at their default."""
    for section, cls in SECTIONS.items():
        ours = [
            key for key, spec in field_specs(cls).items() if spec.is_new and _get(cfg, f"{section}.{key}") is not None
        ]
        if ours:
            logger.warning("dropping %s: upstream does not know them", ", ".join(f"{section}.{key}" for key in ours))
        _drop(cfg.get(section), ours)
