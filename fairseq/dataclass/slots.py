"""Slots: settings that name a registered variant, and the options that the chosen variants bring along.

A model's dataclass declares a slot by a field with ``option(..., slot=REGISTRY)``. A variant owns its options: a
dataclass of its own, registered with it, whose field names start with the variant's name (``fff_depth``). They are
flat in the model section. Flags, YAML keys, the check for unknown keys, the stored configuration and ``from_pretrained``
all ask :func:`model_specs`, so a new variant (a plugin's too) has all of them from its registration alone.

Nothing here imports torch or a model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fairseq.dataclass.base import FieldSpec, field_specs, is_interpolation, model_config_class
from fairseq.errors import ConfigError
from fairseq.registry import ARCHITECTURES, Registry


class Variant(NamedTuple):
    """A chosen variant: its registered ``name`` and its options, by the names without the prefix (``depth``)."""

    name: str
    options: dict[str, Any]


def slots_of(cls: type) -> dict[str, Registry[Any]]:
    """Key -> registry of every slot that the configuration dataclass ``cls`` declares."""
    return {key: spec.slot for key, spec in field_specs(cls).items() if spec.slot is not None}


def variant_specs(registry: Registry[Any], name: str) -> dict[str, FieldSpec]:
    """The options of the variant ``name``, stored only when they differ from their defaults."""
    cls = registry.config_class(name)
    specs = {} if cls is None else field_specs(cls)
    return {
        key: dataclasses.replace(spec, metadata={**spec.metadata, "new": True})
        for key, spec in specs.items()
        if not key.startswith("_")
    }


def model_specs(name: str, values: Mapping[str, Any]) -> dict[str, FieldSpec] | None:
    """The settings of the architecture ``name``: those of its dataclass and of the variants in its slots.

    ``values`` holds the settings given so far; where they choose no variant, the architecture may. None for a plugin
    model without a dataclass, which takes any key.
    """
    cls = model_config_class(name)
    if cls is None:
        return None
    specs = dict(field_specs(cls))
    for slot, variant in chosen_variants(name, values).items():
        registry = slots_of(cls)[slot]
        own = variant_specs(registry, variant)
        for key in own.keys() & specs.keys():
            raise ConfigError(
                f"option {key!r} of {registry.kind} {variant!r} is another setting of the model already: rename the variant "
                "or its option"
            )
        specs |= own
    return specs


def chosen_variants(name: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Slot -> variant of the architecture ``name`` with ``values``, the settings given so far."""
    cls = model_config_class(name)
    if cls is None or not slots_of(cls):
        return {}
    for slot in slots_of(cls):
        if not isinstance(values.get(slot), str | int | float | None):
            raise ConfigError(f"model.{slot} must be the name of a variant, but is {values[slot]!r}")
    node = argparse.Namespace(**{str(key): value for key, value in values.items() if key != "_name"})
    if name in ARCHITECTURES:
        ARCHITECTURES.get(name)(node)
    return settled(cls, vars(node))


def architecture_values(name: Any) -> dict[str, Any]:
    """What the architecture ``name`` fills where nothing is given; nothing for a name, or a model, without slots."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        return {}
    cls = model_config_class(name)
    if cls is None or not slots_of(cls):
        return {}
    node = argparse.Namespace()
    ARCHITECTURES.get(name)(node)
    return vars(node)


def settled(cls: type, values: Mapping[str, Any]) -> dict[str, str]:
    """Slot -> variant, as the settings ``values`` of a model with the dataclass ``cls`` name them.

    A dataclass whose slots have older spellings says so in ``variants_of``. Slots that are not filled are left out.
    """
    read = getattr(cls, "variants_of", None)
    found = read(values) if read is not None else {slot: values.get(slot) for slot in slots_of(cls)}
    return {slot: name for slot, name in found.items() if isinstance(name, str) and not is_interpolation(name)}


def other_variants(stored: Any, model: Any) -> str:
    """What to say of variants that the ``stored`` configuration names but the model section ``model`` does not."""
    node = stored.get("model") if isinstance(stored, Mapping) else None
    cls = model_config_class(model._name) if hasattr(model, "_name") else None
    if cls is None or not isinstance(node, Mapping):
        return ""
    names = {slot: node.get(slot) for slot in slots_of(cls)}
    other = [f"{slot}={name}" for slot, name in names.items() if name and name != getattr(model, slot, None)]
    return f"; it was trained with {', '.join(other)}, and a plugin's variant needs --user-dir, too" if other else ""


def not_chosen(cls: type | None, key: str) -> str:
    """What to say of an unknown ``key`` that is an option of a variant which is not chosen; empty if it is none."""
    for slot, registry in ({} if cls is None else slots_of(cls)).items():
        for name in registry.names():
            if key.startswith(f"{name}_") and key in variant_specs(registry, name):
                return f": it is an option of {registry.kind} {name!r}, which is not chosen (set {slot}={name})"
    return ""
