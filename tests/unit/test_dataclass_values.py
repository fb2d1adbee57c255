"""Field descriptions, and the conversion of values from flags, YAML files and stored configurations."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from fairseq.dataclass import II, MISSING, ChoiceEnum, FairseqDataclass, option
from fairseq.dataclass.base import coerce, convert, eval_str_list, field_specs
from fairseq.errors import ConfigError


@dataclass(kw_only=True)
class Settings(FairseqDataclass):
    size: int = option(3, "a size")
    rates: list[float] = option([0.5], "rates")
    mode: str = option("a", "a mode", choices=("a", "b"))
    kind: ChoiceEnum(["x", "y"]) = option("x", "a kind")  # type: ignore[valid-type]
    path: str | None = option(None, "a path")
    data: str = option(MISSING, "data")
    seed: int = II("common.seed")


@dataclass
class OldStyle(FairseqDataclass):
    window: Optional[int] = field(default=None, metadata={"help": "old", "argparse_alias": "--win"})  # noqa: UP045


def test_fields_describe_themselves() -> None:
    specs = field_specs(Settings)
    assert list(specs) == ["_name", "size", "rates", "mode", "kind", "path", "data", "seed"]
    assert specs["mode"].choices == ("a", "b") and specs["kind"].choices == ("x", "y")
    assert specs["data"].default == MISSING and specs["seed"].default == "${common.seed}"
    assert field_specs(OldStyle)["window"].help == "old"


def test_defaults_are_not_shared() -> None:
    Settings().rates.append(1.0)
    assert Settings().rates == [0.5]


def test_from_namespace_takes_what_is_there() -> None:
    args = argparse.Namespace(size=7, unrelated=1)
    settings = Settings.from_namespace(args)
    assert settings.size == 7 and settings.mode == "a"
    assert Settings.from_namespace(settings) is settings


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("5", int, 5),
        (5.0, int, 5),
        ("1e5", int, 100000),
        (3, float, 3.0),
        ("1e-06", float, 1e-6),
        ("inf", float, math.inf),
        ("True", bool, True),
        ("no", bool, False),
        (1, bool, True),
        (7, str, "7"),
        ("None", int | None, None),
        ("None", str | None, "None"),
        (None, str | None, None),
        ("0.1,0.2", list[float], [0.1, 0.2]),
        ("(1, 2)", list[int], [1, 2]),
        (4, list[int], [4]),
        ("0.005", list[float], [0.005]),
        ("a,b", list[str], ["a", "b"]),
        ((0.9, 0.98), Any, (0.9, 0.98)),
        ("(0.9,0.98)", Any, "(0.9,0.98)"),
        (0, float | int, 0),
        ("{'a': 1}", dict, {"a": 1}),
    ],
)
def test_coerce(value: Any, hint: Any, expected: Any) -> None:
    result = coerce(value, hint, "x")
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("abc", int), (1.5, int), (True, int), (None, int), ("maybe", bool), (2, bool), ([1], str), ("[1", list[int])],
)
def test_bad_values_name_the_setting(value: Any, hint: Any) -> None:
    with pytest.raises(ConfigError, match=r"some\.key"):
        coerce(value, hint, "some.key")


def test_nothing_is_evaluated() -> None:
    with pytest.raises(ConfigError):
        coerce("__import__('os').getcwd()", list[int], "x")
    assert eval_str_list("0.1,0.2") == [0.1, 0.2] and eval_str_list(None) is None
    assert eval_str_list("[1, 2]", int) == [1, 2]


def test_choices_suggest_the_nearest() -> None:
    spec = field_specs(Settings)["kind"]
    assert convert(spec, "y", "s.kind") == "y"
    with pytest.raises(ConfigError, match=r"s\.mode must be one of a, b, but is 'c'"):
        convert(field_specs(Settings)["mode"], "c", "s.mode")
