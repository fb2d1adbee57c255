"""What a checkpoint may hold: kinds and ranges of its values, checked in one place before anybody relies on them.

A rule takes a value and the place where it was found, and raises `Wrong`. Keys that no rule names may hold anything: files
of plugins and of other versions have more than ours.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fairseq.errors import CheckpointError

Rule = Callable[[Any, str], None]


class Wrong(Exception):
    """The argument says what is where it should not be."""


def check_contents(state: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError if the ``state`` read from file ``name`` is not as `CHECKPOINT` says."""
    try:
        CHECKPOINT(state, "")
        _check_texts(state, "")
    except Wrong as wrong:
        raise CheckpointError(f"checkpoint {name} is malformed: {wrong}") from None


def _wrong(where: str, wanted: str, value: Any) -> Wrong:
    shown = f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else repr(value)
    shown = shown if len(shown) <= 60 else f"a {type(value).__name__}"
    return Wrong(f"{where.lstrip('.')} must be {wanted}, but is {shown.encode('ascii', 'backslashreplace').decode()}")


def anything(value: Any, where: str) -> None:
    """A rule that all values keep."""


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise _wrong(where, "a text", value)


def tensor(value: Any, where: str) -> None:
    """A tensor with numbers of its own, as many as it says."""
    if not torch.is_tensor(value):
        raise _wrong(where, "a tensor", value)
    if value.is_meta:
        raise Wrong(f"{where.lstrip('.')} is a tensor without numbers")
    if value.layout == torch.strided and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Wrong(f"{where.lstrip('.')} repeats the numbers of a smaller tensor, to shape {tuple(value.shape)}")


def number(low: float = -math.inf, high: float = math.inf, below: float = math.inf, whole: bool = False) -> Rule:
    """A number from ``low`` to ``high`` and less than ``below``; with ``whole`` an integer. One in a tensor counts too."""
    kind = "an integer" if whole else "a number"
    kind += f" of at least {low:g}" if low > -math.inf else ""
    kind += f" and at most {high:g}" if high < math.inf else f" and less than {below:g}" if below < math.inf else ""

    def rule(value: Any, where: str) -> None:
        found = value.item() if torch.is_tensor(value) and value.numel() == 1 and not value.is_meta else value
        known = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        if isinstance(found, bool) or not isinstance(found, known):
            raise _wrong(where, kind, value)
        bounded = low > -math.inf or high < math.inf
        if (found == found or bounded) and not (low <= found <= high and (found < below or below == math.inf)):
            raise _wrong(where, kind, value)

    return rule


def number_or_numbers(value: Any, where: str) -> None:
    """Numbers of at least 0: Adafactor has two epsilons."""
    (listing(number(0)) if isinstance(value, (list, tuple)) else number(0))(value, where)


def optional(rule: Rule) -> Rule:
    """None, or what keeps ``rule``."""
    return lambda value, where: None if value is None else rule(value, where)


def listing(rule: Rule, length: int | None = None) -> Rule:
    """A list or tuple (of ``length`` items) that keep ``rule``."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
            raise _wrong(where, "a list" if length is None else f"a list of {length}", value)
        for position, item in enumerate(value):
            rule(item, f"{where}[{position}]")

    return check


def group(
    required: Mapping[str, Rule] | None = None, others: Rule = anything, key_type: type = str, **known: Rule
) -> Rule:
    """A dictionary with the ``required`` keys, maybe the ``known`` ones; what else it has keeps ``others``."""
    rules = {**(required or {}), **known}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _wrong(where, "a dictionary", value)
        for key in required or {}:
            if key not in value:
                raise Wrong(f"{where.lstrip('.')} lacks {key!r}")
        for key, item in value.items():
            if not isinstance(key, key_type):
                raise Wrong(
                    f"{where.lstrip('.') or 'the dictionary'} has the key {key!r}, which is no {key_type.__name__}"
                )
            rules.get(key, others)(item, f"{where}.{key}")

    return check


def settings(value: Any, where: str) -> None:
    """A configuration, or one section of it: a Namespace or a dictionary by names."""
    group()(vars(value) if isinstance(value, argparse.Namespace) else value, where)


def weight(value: Any, where: str) -> None:
    """An entry of a state dict: a tensor, except for what a module stores by ``get_extra_state``."""
    if not where.endswith("_extra_state"):
        tensor(value, where)


def _logged(value: Any, where: str) -> None:
    """What a meter sums up: nothing yet, a number, or a tensor."""
    if value is not None and not torch.is_tensor(value):
        number()(value, where)


def meter(value: Any, where: str) -> None:
    """``(priority, key, class name, state)``."""
    listing(anything, 4)(value, where)
    for rule, item, part in zip((number(), text, text, group()), value, range(4), strict=True):
        rule(item, f"{where}[{part}]")
    if value[2] in ("AverageMeter", "SumMeter", "TimeMeter", "StopwatchMeter"):
        group(others=_logged)(value[3], f"{where}[3]")


def optimizer(value: Any, where: str) -> None:
    """The state of an optimizer: torch's two keys, or whatever a plugin's has."""
    group()(value, where)
    if "param_groups" in value:
        group({"state": group(others=_PARAMETER, key_type=object), "param_groups": listing(_PARAMETERS)})(value, where)


def _place(value: Any, where: str) -> None:
    """The way to a tensor in a state, and its name."""
    listing(anything, 2)(value, where)
    listing(anything)(value[0], f"{where}[0]")
    text(value[1], f"{where}[1]")
    if not value[0]:
        raise _wrong(where, "the place of a tensor", value)


_COUNT = number(0, 2**53, whole=True)
_EPOCH = number(0, 2**31, whole=True)  # random streams begin at the seed and the epoch
_WEIGHTS = group(others=weight)
_PARAMETER = group(
    key_type=object,
    step=number(0),
    exp_avg=tensor,
    exp_avg_sq=tensor,
    max_exp_avg_sq=tensor,
    momentum_buffer=optional(tensor),
)
_PARAMETERS = group(
    {"params": listing(_COUNT)},
    lr=optional(number(0)),
    betas=optional(listing(number(0, below=1))),
    eps=optional(number_or_numbers),
    weight_decay=optional(number()),
    momentum=optional(number()),
)
_SCHEDULE = group(best=optional(number()), lr=optional(number(0)), seconds=number(0))
_HISTORY = group(
    criterion_name=text, optimizer_name=text, lr_scheduler_state=optional(_SCHEDULE), num_updates=optional(_COUNT)
)
_POSITION = group({"epoch": _EPOCH, "iterations_in_epoch": _COUNT}, version=_COUNT, batches_in_epoch=_COUNT)
_EXTRA = group(
    train_iterator=optional(_POSITION),
    epoch=optional(_EPOCH),
    batch_offset=optional(_COUNT),
    previous_training_time=number(0),
    val_loss=optional(number()),
    best=optional(number()),
    early_stop=optional(group({"best": optional(number()), "runs": _COUNT})),
    metrics=optional(group(others=listing(meter))),
    ema=optional(_WEIGHTS),
    ema_fp32_params=optional(_WEIGHTS),
)
_SHARDS = group(
    {
        "directory": text,
        "files": group(others=listing(_COUNT, 2)),
        "places": listing(_place),
    }
)
CHECKPOINT = group(
    {"model": _WEIGHTS},
    args=optional(settings),
    cfg=optional(settings),
    criterion=optional(group()),
    optimizer_history=optional(listing(_HISTORY)),
    last_optimizer_state=optional(optimizer),
    task_state=optional(group()),
    extra_state=optional(_EXTRA),
    shards=optional(_SHARDS),
    epoch=optional(_EPOCH),  # of files too old to have an extra state
    batch_offset=optional(_COUNT),
    val_loss=optional(number()),
    best_loss=optional(number()),
    key_type=object,
)


def _check_texts(value: Any, where: str) -> None:
    """Raise Wrong for a text that no file name and no terminal can show (half of a surrogate pair)."""
    if isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape")  # bytes of a file name that are not UTF-8
        except UnicodeEncodeError:
            raise _wrong(where, "a text that is Unicode", value) from None
    elif isinstance(value, argparse.Namespace):
        _check_texts(vars(value), where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(key, where or "a key")
            _check_texts(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _check_texts(item, f"{where}[{position}]")
