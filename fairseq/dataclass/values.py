"""Turn a value from a flag, a YAML file or a stored configuration into the type that its field is annotated with.

One function for every entrance, so that ``--lr 0.005``, ``lr: [0.005]`` and ``optimization.lr=0.005`` mean the same.
Strings are read as Python literals where the field is not a string; nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from fairseq.dataclass.base import FieldSpec
from fairseq.errors import ConfigError
from fairseq.registry import nearest

_TRUE = {"true", "yes", "on", "y", "1"}
_FALSE = {"false", "no", "off", "n", "0"}


def convert(spec: FieldSpec, value: Any, where: str) -> Any:
    """``value`` as ``spec`` wants it; ``where`` (``"optimization.lr"``) is named in the ConfigError of a bad one."""
    value = coerce(value, spec.hint, where)
    choices = spec.choices
    if choices is not None and value is not None and value not in choices:
        known = [str(choice) for choice in choices]
        raise ConfigError(f"{where} must be one of {', '.join(known)}, but is {value!r}{nearest(str(value), known)}")
    return value


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
        except (TypeError, ValueError, OverflowError):
            raise _bad(value, _TYPE_NAMES[hint], where) from None
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
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
    elif isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise ValueError(value)


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, (str, int, float, Path)):
        raise TypeError(value)
    return str(value.value) if isinstance(value, Enum) else str(value)


_SCALARS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, str: _str}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def _union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    rest = [member for member in members if member is not type(None)]
    if len(rest) < len(members):
        text_field = str in rest or any(isinstance(member, type) and issubclass(member, Enum) for member in rest)
        if value is None or (isinstance(value, str) and not text_field and value.strip() in ("None", "null", "")):
            return None
    for member in rest:
        if isinstance(member, type) and type(value) is member:
            return value
    error: ConfigError | None = None
    for member in rest:
        try:
            return coerce(value, member, where)
        except ConfigError as failure:
            error = error or failure
    assert error is not None
    raise error


def _list(value: Any, arguments: tuple[Any, ...], where: str) -> list[Any]:
    element = arguments[0] if arguments else Any
    if isinstance(value, str):
        if element is str and not value.strip().startswith(("[", "(", "'", '"')):
            value = [part for part in value.split(",") if part]
        else:
            value = literal(value, where)
    if isinstance(value, (list, tuple)):
        return [coerce(item, element, where) for item in value]
    return [coerce(value, element, where)]


def _enum(value: Any, hint: type[Enum], where: str) -> Any:
    if isinstance(value, Enum):
        return value.value
    for member in hint:
        if value in (member.value, member.name):
            return member.value
    known = [str(member.value) for member in hint]
    raise ConfigError(f"{where} must be one of {', '.join(known)}, but is {value!r}{nearest(str(value), known)}")


def eval_str_list(x: Any, x_type: Callable[[Any], Any] = float) -> list[Any] | None:
    """``"0.1,0.2"``, ``"[1, 2]"``, ``0.5`` or a list as a list of ``x_type``; None stays None."""
    if x is None:
        return None
    return [x_type(item) for item in coerce(x, list[Any], "the option")]
