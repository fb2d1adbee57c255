"""Every number in the configuration declares its range; flags and YAML are held to it by one sentence."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from fairseq.dataclass.base import GROUPS, FieldSpec, check_within, field_specs, is_interpolation
from fairseq.dataclass.build import build_config
from fairseq.dataclass.configs import SECTIONS
from fairseq.dataclass.interval import parse_interval
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError
from fairseq.registry import ATTENTION_BIASES, CHANNEL_MIXERS, LM_HEADS, MODELS, POSITIONS, TOKEN_MIXERS

ANY_NUMBER = {"seed", "fixed_validation_seed"}
OWN_CHECK = {"phase_ratio"}  # three numbers that sum to 1


def numbers() -> Iterator[tuple[str, FieldSpec]]:
    """Every setting of the built-in components that is a number, or a list of numbers."""
    groups = (*GROUPS.items(), *((r.kind, r) for r in (MODELS, POSITIONS, ATTENTION_BIASES, TOKEN_MIXERS, LM_HEADS)))
    classes: dict[str, Any] = dict(SECTIONS)
    for group, registry in (*groups, (CHANNEL_MIXERS.kind, CHANNEL_MIXERS)):
        classes |= {f"{group}.{name}": registry.config_class(name) for name in registry.names()}
    for where, cls in classes.items():
        if cls is not None and cls.__module__.startswith("fairseq."):
            for name, spec in field_specs(cls).items():
                if is_number(spec.hint):
                    yield f"{where}.{name}", spec


def is_number(hint: Any) -> bool:
    return hint in (int, float) or any(is_number(part) for part in typing.get_args(hint))


def test_every_number_declares_its_range_and_its_default_is_in_it() -> None:
    found = 0
    for where, spec in numbers():
        found += 1
        free = spec.name in ANY_NUMBER | OWN_CHECK or "belongs_to" in spec.metadata or spec.choices
        assert free or spec.within or is_interpolation(spec.default), where
        if not is_interpolation(spec.default) and spec.default != "???":
            check_within(spec, spec.default, where)
    assert found > 200


def test_intervals() -> None:
    half_open = parse_interval("[0, 1)")
    assert 0 in half_open and 0.5 in half_open and 1 not in half_open and float("nan") not in half_open
    assert half_open.describe() == "at least 0 and below 1"
    positive = parse_interval("(0, inf)")
    assert 0.0 not in positive and 1e-300 in positive and float("inf") not in positive
    assert positive.describe(-1) == "above 0" and positive.describe(float("inf")) == "above 0 and a finite number"
    assert parse_interval("(-inf, 0]").describe() == "at most 0"


CASES = [
    ("optimization", "lr", "-1", "above 0, but is -1"),
    ("optimization", "lr", "1e-400", "above 0, but is 1e-400"),
    ("optimization", "lr", "inf", "above 0 and a finite number, but is inf"),
    ("optimization", "lr", "0.1,-0.2", "above 0, but is 0.1,-0.2"),
    ("optimization", "lr", "fast", "a number or a list of numbers such as 0.1,0.2, but is 'fast'"),
    ("optimization", "clip_norm", "nan", "at least 0 and a finite number, but is nan"),
    ("optimization", "update_freq", "0", "at least 1, but is 0"),
    ("optimizer", "adam_eps", "0", "above 0, but is 0"),
    ("optimizer", "weight_decay", "-0.1", "at least 0, but is -0.1"),
    ("lr_scheduler", "warmup_updates", "-5", "at least 0, but is -5"),
    ("model", "dropout", "1.0", "at least 0 and below 1, but is 1.0"),
    ("ema", "ema_decay", "5", "at least 0 and at most 1, but is 5"),
    ("common", "fp16_init_scale", "0", "at least 1, but is 0"),
    ("common", "log_interval", "0", "at least 1, but is 0"),
    ("dataset", "batch_size", "0", "at least 1, but is 0"),
    ("dataset", "num_workers", "-1", "at least 0, but is -1"),
    ("task", "mask_prob", "1.5", "at least 0 and below 1, but is 1.5"),
]
NAMES = {"optimizer": "adam", "lr_scheduler": "polynomial_decay", "model": "roberta_base", "task": "masked_lm"}


@pytest.mark.parametrize("section, key, value, words", CASES)
def test_what_is_out_of_range_is_refused(
    section: str, key: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {group: {"_name": name} for group, name in NAMES.items()}
    given["optimization"] = {"lr": "0.1", "max_update": 1}
    given["task"]["data"] = "data-bin"
    given.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError) as error:
        build_config(given)
    assert str(error.value) == f"{section}.{key} must be {words}"

    flags = ["data-bin", "--arch", "roberta_base", "--lr-scheduler", "polynomial_decay", "--optimizer", "adam"]
    flags += ["--lr", "0.1", "--max-update", "1", f"--{key.replace('_', '-')}={value}"]
    with pytest.raises(SystemExit):
        parse_args_and_arch(get_training_parser(), flags)
    said = capsys.readouterr().err
    assert f"argument --{key.replace('_', '-')}" in said and f"the value must be {words}" in said
    assert said.count("\n") == 1


def test_stored_settings_are_not_judged() -> None:
    stored = {"optimizer": {"_name": "adam", "adam_eps": 0.0}, "optimization": {"lr": [-1.0]}, "model": "roberta_base"}
    cfg = build_config(stored, stored=True)
    assert cfg.optimizer.adam_eps == 0.0 and list(cfg.optimization.lr) == [-1.0]
