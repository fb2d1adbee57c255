"""The base class of every configuration dataclass, and how a field describes itself.

A component's settings are one dataclass::

    @dataclass(kw_only=True)
    class PolynomialDecayLRScheduleConfig(FairseqDataclass):
        warmup_updates: int = option(0, "updates of linear warm-up from 0 to the peak learning rate")
        total_num_update: float = option(II("optimization.max_update"), "updates until the end learning rate")

Command-line flags, YAML keys, validation and the stored configuration all follow from it. :func:`option` is a thin
layer over ``dataclasses.field``; plain fields and the original's ``metadata={"help": ..., "choices": ...}`` work too.

Metadata keys (all optional):

==================  ====================================================================================================
``help``            one sentence: what it is, its unit, and what the special values mean
``choices``         the allowed values (a sequence; alternatively annotate the field with a ``ChoiceEnum``)
``argparse_alias``  a further flag, ``"--max-sentences"``
``argparse_const``  the value of a flag that is given without one
``argparse_flag``   the flag's spelling where ``--<field-name>`` is taken; ``--model-mask-prob`` is stored in the parsed
                    Namespace as ``model_mask_prob``
``argparse_action`` for booleans: ``"store_true"``, ``"store_false"`` (giving the flag turns the setting off) or
                    ``"boolean"`` (the pair ``--x`` / ``--no-x``). Default: ``store_true`` for False; for True
                    ``"boolean"`` in models and ``store_false``, as in the original, elsewhere
``new``             True for a key that the original does not know: stored only when it differs from its default
==================  ====================================================================================================

This module imports neither torch nor omegaconf, so that ``--help`` stays instant.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Sequence
from dataclasses import MISSING as _NO_DEFAULT
from dataclasses import dataclass, field, fields
from typing import Any

MISSING: Any = "???"
"""The default of a mandatory setting (omegaconf's own marker)."""


def II(path: str) -> Any:
    """An interpolated default: the value of the setting at ``path``, for example ``common.seed``."""
    return "${" + path + "}"


def follow(path: str, otherwise: Any) -> Any:
    """As :func:`II`, but ``otherwise`` where nothing has that path (a component may lack the setting)."""
    text = {True: "true", False: "false", None: "null"}.get(otherwise, otherwise)
    return "${oc.select:" + path + "," + str(text) + "}"


def is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    alias: str | None = None,
    const: Any = None,
    flag: str | None = None,
    action: str | None = None,
    new: bool = False,
) -> Any:
    """A dataclass field with its description; the arguments are the metadata keys of the module docstring."""
    metadata: dict[str, Any] = {"help": help}
    if choices is not None:
        metadata["choices"] = tuple(choices)
    if new:
        metadata["new"] = True
    for key, value in (("alias", alias), ("const", const), ("flag", flag), ("action", action)):
        if value is not None:
            metadata[f"argparse_{key}"] = value
    if isinstance(default, (list, dict)):
        kind = type(default)
        return field(default_factory=lambda: kind(default), metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class FairseqDataclass:
    """Settings of one section or component; ``_name`` is the registered name of the component it configures."""

    _name: str | None = None

    @staticmethod
    def name() -> str | None:
        """The default component name (old interface)."""
        return None

    @classmethod
    def from_namespace(cls, args: Any) -> Any:
        """An instance with every field that ``args`` (an argparse.Namespace) has; an instance of ``cls`` is returned."""
        if isinstance(args, cls):
            return args
        config = cls()
        for spec in field_specs(cls).values():
            if not spec.name.startswith("_") and hasattr(args, spec.name):
                setattr(config, spec.name, getattr(args, spec.name))
        return config


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One field, ready to use: its resolved type and a factory for its default."""

    name: str
    hint: Any
    metadata: dict[str, Any]
    factory: Any

    @property
    def default(self) -> Any:
        """A fresh copy of the default; ``MISSING`` when there is none."""
        return self.factory()

    @property
    def help(self) -> str | None:
        return self.metadata.get("help")

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Allowed values, from the metadata or from the enum the field is annotated with."""
        if self.metadata.get("choices") is not None:
            return tuple(self.metadata["choices"])
        kinds = [kind for kind in (self.hint, *typing.get_args(self.hint)) if hasattr(kind, "__members__")]
        return tuple(member.value for member in kinds[0]) if kinds else None

    @property
    def dest(self) -> str:
        """The attribute of a parsed Namespace that holds it."""
        flag = self.metadata.get("argparse_flag")
        return flag.lstrip("-").replace("-", "_") if flag else self.name

    @property
    def is_new(self) -> bool:
        return bool(self.metadata.get("new"))


_specs: dict[type, dict[str, FieldSpec]] = {}


def field_specs(cls: type) -> dict[str, FieldSpec]:
    """Name -> :class:`FieldSpec` of every field of a configuration dataclass, ``_name`` included."""
    if cls not in _specs:
        _specs[cls] = _read_fields(cls)
    return _specs[cls]


def _read_fields(cls: Any) -> dict[str, FieldSpec]:
    hints = typing.get_type_hints(cls)
    specs = {}
    for item in fields(cls):
        if item.default is not _NO_DEFAULT:
            factory = functools.partial(_identity, item.default)
        elif item.default_factory is not _NO_DEFAULT:
            factory = item.default_factory  # type: ignore[assignment]
        else:
            factory = functools.partial(_identity, MISSING)
        specs[item.name] = FieldSpec(
            name=item.name, hint=hints.get(item.name, Any), metadata=dict(item.metadata), factory=factory
        )
    return specs


def _identity(value: Any) -> Any:
    return value
