"""Command-line flags from configuration dataclasses, and an argument parser that helps with misspelt ones."""

from __future__ import annotations

import argparse
import types
import typing
from enum import Enum
from typing import Any, NoReturn

import fairseq
from fairseq.dataclass.base import HIDDEN, MISSING, FieldSpec, convert, field_specs, is_interpolation
from fairseq.dataclass.slots import not_chosen
from fairseq.errors import ConfigError
from fairseq.registry import nearest


def show_version(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the option ``--version``, in the place of another program's if it has one."""
    text = f"fairseq {fairseq.__version__}"
    action: Any = parser._option_string_actions.get("--version")
    if action is None:
        parser.add_argument("--version", action="version", version=text, help="show the version and exit")
    else:
        action.version = text


class FairseqParser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations whose errors are one line, with the nearest flag for an unknown one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        show_version(self)
        self.stage = ""
        self.model_class: type | None = None

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, extra = self.parse_known_args(args, namespace)
        for word in extra:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                hint = not_chosen(self.model_class, flag.lstrip("-").replace("-", "_"))
                self.error(f"unknown option {flag}{hint or self._nearest(flag)}")
        if extra:
            self.error(f"unexpected argument {extra[0]!r}")
        return parsed

    def _nearest(self, flag: str) -> str:
        known = [spelling for action in self._actions for spelling in action.option_strings]
        return nearest(flag, known).replace("'", "")


def gen_parser_from_dataclass(
    parser: Any,
    dataclass_instance: Any,
    delete_default: bool = False,
    with_prefix: str | None = None,
) -> None:
    """Add a flag to ``parser`` (or an argument group) for every field of a configuration dataclass or instance.

    ``delete_default``: a setting that is not given is absent from the Namespace (models: architectures fill them in).
    ``with_prefix``: flags are called ``--<prefix>-<field>``. A flag that exists already with the same type and default,
    or that belongs to a shared (interpolated) setting, is reused; one with another meaning is a ConfigError.
    """
    cls = dataclass_instance if isinstance(dataclass_instance, type) else type(dataclass_instance)
    for name, spec in field_specs(cls).items():
        if name.startswith("_"):
            continue
        default = spec.asked if isinstance(dataclass_instance, type) else getattr(dataclass_instance, name)
        nested = _nested(spec.hint)
        if nested is not None:
            prefix = None if with_prefix is None else f"{with_prefix}-{name}".strip("-").replace("_", "-")
            gen_parser_from_dataclass(parser, nested, delete_default, prefix)
            continue
        if is_interpolation(default) and not spec.help:
            continue
        _add_flag(parser, cls, spec, default, delete_default, with_prefix)


def _nested(hint: Any) -> Any:
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if hasattr(kind, "__dataclass_fields__")]
    return kinds[0] if kinds else None


def _add_flag(
    parser: Any, cls: type, spec: FieldSpec, default: Any, delete_default: bool, with_prefix: str | None
) -> None:
    flags = spec.flags
    if with_prefix:
        flags[0] = f"--{with_prefix}-{flags[0].lstrip('-')}"
    kind = _kind(spec.hint)
    if spec.name == "data" and with_prefix is None:
        # the one positional argument
        if not any(action.dest == "data" and not action.option_strings for action in parser._actions):
            parser.add_argument("data", help=spec.help)
        return
    taken = [flag for flag in flags if flag in parser._option_string_actions]
    for flag in taken:
        _check_shared(parser._option_string_actions[flag], flag, cls, kind, default, delete_default)
    if flags[0] in taken:
        return
    flags = [flag for flag in flags if flag not in taken]
    kwargs: dict[str, Any] = {"help": _help(spec, default, delete_default)}
    if delete_default:
        kwargs["default"] = argparse.SUPPRESS
    elif is_interpolation(default):
        kwargs["default"] = None
    else:
        kwargs["default"] = default.value if isinstance(default, Enum) else default
    if kind is bool:
        flags = _boolean(flags, spec, default, delete_default, kwargs)
    else:
        kwargs["type"] = _reader(spec)
        kwargs["metavar"] = _metavar(spec, kind)
        if "argparse_const" in spec.metadata:
            kwargs |= {"nargs": "?", "const": spec.metadata["argparse_const"]}
    if flags[0].startswith("--") and flags[0][2:].replace("-", "_") != spec.dest and with_prefix is None:
        kwargs["dest"] = spec.dest
    action = parser.add_argument(*flags, **kwargs)
    # Kept on the action, which a parser and its groups share: who claimed the flag, as what type and default.
    action.claim = (_origin(cls), kind, argparse.SUPPRESS if delete_default else default)


def _check_shared(action: Any, flag: str, cls: type, kind: Any, default: Any, delete_default: bool) -> None:
    """An existing flag may stand for one more setting if it means the same, or if one of the two is a model's."""
    if is_interpolation(default):
        return  # follows another setting until it is given
    owner, old_kind, old_default = getattr(action, "claim", ("the command itself", None, None))
    model = delete_default or old_default is argparse.SUPPRESS
    if old_kind is not kind or not (is_interpolation(old_default) or model or old_default == default):
        raise ConfigError(
            f"option {flag} is claimed with different meanings by {owner} and by {_origin(cls)}; "
            "give one of them another spelling with argparse_flag"
        )


def _origin(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _kind(hint: Any) -> Any:
    """The type of one value: bool, int, float, str, list, ... with ``| None`` removed."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return _kind(members[0]) if len(members) == 1 else str
    return typing.get_origin(hint) or hint


def _boolean(
    flags: list[str], spec: FieldSpec, default: Any, delete_default: bool, kwargs: dict[str, Any]
) -> list[str]:
    action = spec.metadata.get("argparse_action")
    if action is None:
        # Optional booleans of models: None means that the architecture decides.
        pair = delete_default and default is not False
        action = "boolean" if pair else "store_false" if default is True else "store_true"
    if action != "boolean":
        kwargs["action"] = action
        return flags
    kwargs["action"] = _Pair
    kwargs["nargs"] = 0
    base = flags[0][2:]
    return [*flags, f"--{base[3:]}" if base.startswith("no-") else f"--no-{base}"]


class _Pair(argparse.Action):
    """``--x`` sets True, its opposite (the last spelling) False."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string != self.option_strings[-1])


def _reader(spec: FieldSpec) -> Any:
    def read(text: str) -> Any:
        if text == MISSING:  # a default that is to be asked for
            return text
        try:
            return convert(spec, text, "the value")
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _metavar(spec: FieldSpec, kind: Any) -> str:
    if spec.slot is not None:
        return "NAME"
    if spec.choices is not None:
        return "{" + ",".join(str(choice) for choice in spec.choices) + "}"
    return {int: "N", float: "X", list: "X,..", tuple: "X,.."}.get(kind, "TEXT")


def _help(spec: FieldSpec, default: Any, delete_default: bool) -> str:
    text = spec.help or ""
    if text == HIDDEN:
        return HIDDEN
    if spec.slot is not None:
        text += f": {', '.join(spec.slot.names())}"
    if not (delete_default or default is None or default is False or default in ("", MISSING)):
        shown = ",".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        text += f" [{'as ' + default[2:-1] if is_interpolation(default) else shown}]"
    return text.replace("%", "%%")
