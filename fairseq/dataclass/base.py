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
``within``          the range of a number, or of each number of a list: ``"[0, 1)"``; see ``fairseq.dataclass.interval``
``argparse_alias``  a further flag, ``"--max-sentences"``, or several
``argparse_const``  the value of a flag that is given without one
``argparse_flag``   the flag's spelling where ``--<field-name>`` is taken; ``--model-mask-prob`` is stored in the parsed
                    Namespace as ``model_mask_prob``
``argparse_action`` for booleans: ``"store_true"``, ``"store_false"`` (giving the flag turns the setting off) or
                    ``"boolean"`` (the pair ``--x`` / ``--no-x``). Default: ``store_true`` for False; for True
                    ``"boolean"`` in models and ``store_false``, as in the original, elsewhere
``new``             True for a key that the original does not know: stored only when it differs from its default
``belongs_to``      for a key that only old files carry: what other values than its default would ask for
``asked``           True for a setting that whoever starts a training must give: its default serves programs and old files
``found_out``       True for a default that depends on the machine (set for a function as the default)
``slot``            the registry whose variants the setting names: see ``fairseq.dataclass.slots``
==================  ====================================================================================================

Values from flags, YAML files and stored configurations go through one function into the type that their field is annotated
with, so that ``--lr 0.005``, ``lr: [0.005]`` and ``optimization.lr=0.005`` mean the same. Strings are read as Python literals
where the field is not a string; nothing is ever evaluated.

This module imports neither torch nor omegaconf, so that ``--help`` stays instant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING as _NO_DEFAULT
from dataclasses import Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from fairseq.dataclass.interval import parse_interval
from fairseq.errors import ConfigError
from fairseq.registry import (
    ARCHITECTURE_MODELS,
    ARCHITECTURES,
    BPES,
    CRITERIONS,
    LR_SCHEDULERS,
    MODELS,
    OPTIMIZERS,
    SCORERS,
    TASKS,
    TOKENIZERS,
    Registry,
    nearest,
)

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


HIDDEN = argparse.SUPPRESS  # the help of a setting that ``--help`` leaves out


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    within: str | None = None,
    alias: str | tuple[str, ...] | None = None,
    const: Any = None,
    flag: str | None = None,
    action: str | None = None,
    new: bool = False,
    asked: bool = False,
    slot: Registry[Any] | None = None,
) -> Any:
    """A dataclass field with its description; the arguments are the metadata keys of the module docstring."""
    described = {
        "help": help,
        "choices": choices,
        "within": within,
        "new": new or slot is not None or None,
        "asked": asked or None,
        "slot": slot,
    }
    flagged = {"alias": alias, "const": const, "flag": flag, "action": action}
    metadata = described | {f"argparse_{key}": value for key, value in flagged.items()}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata={**metadata, "found_out": True})
    return field(default=default, metadata=metadata)


def carried(default: Any, belongs_to: str, **metadata: Any) -> Any:
    """A field that only old files carry: not worth a line of help, refused at another value than its default."""
    return field(default=default, metadata={"help": HIDDEN, "belongs_to": belongs_to, **metadata})


@dataclass(kw_only=True)
class FairseqDataclass:
    """Settings of one section or component; ``_name`` is the registered name of the component it configures."""

    _name: str | None = None

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
    """One field, ready to use: its resolved type, its metadata and where its default comes from."""

    name: str
    hint: Any
    metadata: dict[str, Any]
    field: Field[Any]

    @property
    def default(self) -> Any:
        """A fresh copy of the default; ``MISSING`` when there is none."""
        if self.field.default_factory is not _NO_DEFAULT:
            return self.field.default_factory()
        return MISSING if self.field.default is _NO_DEFAULT else self.field.default

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
    def within(self) -> str | None:
        """The declared range of a number."""
        return self.metadata.get("within")

    @property
    def dest(self) -> str:
        """The attribute of a parsed Namespace that holds it."""
        flag = self.metadata.get("argparse_flag")
        return flag.lstrip("-").replace("-", "_") if flag else self.name

    @property
    def flags(self) -> list[str]:
        """Its spellings on the command line, the first one before those for old commands."""
        alias = self.metadata.get("argparse_alias") or []
        flag = self.metadata.get("argparse_flag") or "--" + self.name.replace("_", "-")
        return [flag, *([alias] if isinstance(alias, str) else alias)]

    @property
    def slot(self) -> Registry[Any] | None:
        """The registry whose variants this setting chooses from, for a slot."""
        return self.metadata.get("slot")

    @property
    def asked(self) -> Any:
        """The default on a command line and in a YAML file."""
        return MISSING if self.metadata.get("asked") else self.default

    @property
    def is_found_out(self) -> bool:
        return bool(self.metadata.get("found_out"))

    @property
    def is_new(self) -> bool:
        return bool(self.metadata.get("new"))


_specs: dict[type, dict[str, FieldSpec]] = {}
_USUAL: dict[Any, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str)},
    **{f"{kind.__name__} | None": kind | None for kind in (bool, int, float, str)},
    **{f"list[{kind.__name__}]": list[kind] for kind in (int, float, str)},  # type: ignore[valid-type]
    "float | int": float | int,
    "Any": Any,
}


def field_specs(cls: type) -> dict[str, FieldSpec]:
    """Name -> :class:`FieldSpec` of every field of a configuration dataclass, ``_name`` included."""
    if cls not in _specs:
        # get_type_hints compiles every annotation anew, which was a fifth of the time of --help: the usual ones are known.
        usual = all(item.type in _USUAL for item in fields(cls))  # type: ignore[arg-type]
        hints = {item.name: _USUAL[item.type] for item in fields(cls)} if usual else typing.get_type_hints(cls)  # type: ignore[arg-type,index]
        _specs[cls] = {
            item.name: FieldSpec(name=item.name, hint=hints[item.name], metadata=dict(item.metadata), field=item)
            for item in fields(cls)  # type: ignore[arg-type]
        }
    return _specs[cls]


GROUPS: dict[str, Registry[Any]] = {
    "task": TASKS,
    "criterion": CRITERIONS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": LR_SCHEDULERS,
    "scoring": SCORERS,
    "bpe": BPES,
    "tokenizer": TOKENIZERS,
}


def model_config_class(name: str) -> type | None:
    """The configuration class of an architecture or model; None for a plugin model that has none. Imports no model."""
    if name in ARCHITECTURE_MODELS:
        return MODELS.config_class(ARCHITECTURE_MODELS[name])
    if name in MODELS and name not in ARCHITECTURES:
        return MODELS.config_class(name)
    found = ARCHITECTURES.config_class(name)
    return found if found is not None or name not in MODELS else MODELS.config_class(name)


_TRUE = {"true", "yes", "on", "y", "1"}
_FALSE = {"false", "no", "off", "n", "0"}


def convert(spec: FieldSpec, value: Any, where: str, *, stored: bool = False) -> Any:
    """``value`` as ``spec`` wants it; ``where`` (``"optimization.lr"``) is named in the ConfigError of a bad one.

    The range is not asked of a ``stored`` value: what an old run was given shall not make its checkpoint unreadable.
    """
    given, value = value, coerce(value, spec.hint, where)
    if not stored:
        check_within(spec, value, where, given)
    choices = spec.choices
    if choices is not None and value is not None and value not in choices:
        raise _not_among(value, choices, where)
    return value


def check_within(spec: FieldSpec, value: Any, where: str, given: Any = None) -> None:
    """Raise ConfigError for a number outside its declared range; ``given``: what it was read from (1e-400 is 0.0)."""
    if spec.within is None:
        return
    allowed = parse_interval(spec.within)
    for number in value if isinstance(value, list) else [value]:
        if number is not None and number not in allowed:
            shown = number if given is None else given
            raise ConfigError(f"{where} must be {allowed.describe(number)}, but is {shown}")


def _not_among(value: Any, choices: Iterable[Any], where: str) -> ConfigError:
    known = list(map(str, choices))
    return ConfigError(f"{where} must be one of {', '.join(known)}, but is {value!r}{nearest(str(value), known)}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` as type ``hint``: plain types, lists of them, enums (stored as strings), optional ones, Any."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(value, typing.get_args(hint), where)
    if hint is Any or isinstance(hint, (str, typing.TypeVar)):
        return value.value if isinstance(value, Enum) else value
    if origin in (list, tuple) or hint in (list, tuple):
        return _list(value, typing.get_args(hint), where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(value, hint, where)
    scalar = _SCALARS.get(hint)
    if scalar is not None:
        try:
            return scalar(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise _bad(value, f"{_TYPE_NAMES[hint]}{_WHY.get(type(error), '')}", where) from None
    if origin is dict or hint is dict:
        return literal_dict(value, where)
    return value


def literal(text: str, where: str) -> Any:
    """A Python literal (number, tuple, dictionary, ...) without evaluating anything."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ConfigError(f"{where} must be a Python literal, but is {text!r}") from None


def literal_dict(value: Any, where: str) -> dict[Any, Any]:
    """A dictionary, or the Python literal of one."""
    value = literal(value, where) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise _bad(value, "a dictionary such as {'lr': 0.1}", where)
    return dict(value)


def _bad(value: Any, wanted: str, where: str) -> ConfigError:
    if value is None:
        return ConfigError(f"{where} must be {wanted}, but is empty (null)")
    return ConfigError(f"{where} must be {wanted}, but is {value!r}")


def _bool(value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if text not in _TRUE | _FALSE:
        raise ValueError(value)
    return text in _TRUE


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    if not -(2**63) <= value < 2**63:
        raise OverflowError(value)
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, (str, int, float, Path)):
        raise TypeError(value)
    text = str(value.value) if isinstance(value, Enum) else str(value)
    if "\0" in text:
        raise UnicodeError(value)
    text.encode("utf-8", "surrogateescape")  # bytes of a file name that are not UTF-8 pass
    return text


_SCALARS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, str: _str}
_WHY: dict[type, str] = {
    OverflowError: " of at most 64 bits",
    UnicodeError: " without NUL characters",
    UnicodeEncodeError: " that is Unicode",
}
_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    rest = [member for member in members if member is not type(None)]
    if len(rest) < len(members):
        text_field = str in rest or any(isinstance(member, type) and issubclass(member, Enum) for member in rest)
        if value is None or (isinstance(value, str) and not text_field and value.strip() in ("None", "null", "")):
            return None
    for member in rest:
        if isinstance(member, type) and type(value) is member:
            return value
    for member in rest:
        with contextlib.suppress(ConfigError):
            return coerce(value, member, where)
    return coerce(value, rest[0], where)  # raises what is wrong


def _list(value: Any, arguments: tuple[Any, ...], where: str) -> list[Any]:
    element = arguments[0] if arguments else Any
    if isinstance(value, str):
        if element is str and not value.strip().startswith(("[", "(", "'", '"')):
            value = [part for part in value.split(",") if part]
        elif element in (int, float):
            value = _numbers(value, where)
        else:
            value = literal(value, where)
    if isinstance(value, (list, tuple)):
        return [coerce(item, element, where) for item in value]
    return [coerce(value, element, where)]


def _numbers(text: str, where: str) -> Any:
    """``"0.1"``, ``"0.1,0.2"`` or ``"[0.1, 0.2]"``; ``inf`` and ``nan`` are numbers that the range refuses."""
    parts = text.strip().removeprefix("[").removesuffix("]").split(",")
    if all(part.strip() in ("inf", "-inf", "nan") for part in parts):
        return [float(part) for part in parts]
    try:
        return literal(text, where)
    except ConfigError:
        raise _bad(text, "a number or a list of numbers such as 0.1,0.2", where) from None


def _enum(value: Any, hint: type[Enum], where: str) -> Any:
    for member in hint:
        if value in (member, member.value, member.name):
            return member.value
    raise _not_among(value, [member.value for member in hint], where)


def eval_str_list(x: Any, x_type: Callable[[Any], Any] = float) -> list[Any] | None:
    """``"0.1,0.2"``, ``"[1, 2]"``, ``0.5`` or a list as a list of ``x_type``; None stays None."""
    if x is None:
        return None
    return [x_type(item) for item in coerce(x, list[Any], "the option")]
