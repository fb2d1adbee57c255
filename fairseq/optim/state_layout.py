"""Fit a stored optimizer state to the parameters at hand: one entry per parameter, or one flat vector of all.

The original's fp16 runs keep one float32 vector of all trainable parameters, in ``parameters()`` order, with a single
state entry; every other mode keeps one entry per parameter in the same order. Both hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fairseq.errors import CheckpointError

_ADVICE = "it belongs to another model or optimizer; start it afresh with --reset-optimizer"

# Adafactor's averages over rows and columns are smaller than their parameter.
_FACTORED: dict[str, Callable[[torch.Size], torch.Size]] = {
    "exp_avg_sq_row": lambda shape: shape[:-1],
    "exp_avg_sq_col": lambda shape: shape[:-2] + shape[-1:],
}


def fit_state(
    state_dict: dict[str, Any], shapes: Sequence[torch.Size], groups: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """``state_dict`` (torch layout) rearranged for parameters of ``shapes``, in ``parameters()`` order.

    ``groups`` has the indices of each group's parameters into ``shapes``; a state in one group is distributed over them.
    The argument is not changed. Raises CheckpointError when sizes do not fit.
    """
    saved = state_dict.get("param_groups")
    if not isinstance(saved, list) or not isinstance(state_dict.get("state"), dict):
        raise CheckpointError(f"the optimizer state of the checkpoint has no parameter groups; {_ADVICE}")
    counts = [len(group["params"]) for group in saved]
    if counts == [1] and len(shapes) > 1:
        state_dict = _split(state_dict, shapes)
    elif len(counts) == 1 and counts[0] > 1 and len(shapes) == 1:
        state_dict = _join(state_dict, shapes[0].numel())
    elif counts not in ([len(shapes)], [len(group) for group in groups]):
        raise CheckpointError(
            f"the optimizer state of the checkpoint has {sum(counts)} parameters in {len(counts)} group(s), the model has "
            f"{len(shapes)} in {len(groups)}; {_ADVICE}"
        )
    if len(counts) == 1 < len(groups):
        state_dict = _distribute(state_dict, groups)
    _check_shapes(state_dict, [shapes[index] for group in groups for index in group])
    return state_dict


def whole_shape(param: Any) -> torch.Size:
    """The shape of ``param``, or of what it is a shard of."""
    shard = getattr(param, "shard", None)
    return param.shape if shard is None else shard.shape


def of_shards(state_dict: dict[str, Any], params: Sequence[Any], change: str) -> dict[str, Any]:
    """``state_dict`` with the values of those of ``params`` (in the order of the groups) that are shards changed.

    ``change``, a method of `fairseq.distributed.shards.Shard`: to ``mark`` them as shards, or to ``cut`` them to shards. A
    value is one of a shard if it has its shape, or that of the whole.
    """
    if not any(hasattr(param, "shard") for param in params):
        return state_dict
    state = dict(state_dict["state"])
    ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    for index, param in zip(ids, params, strict=True):
        shard = getattr(param, "shard", None)
        if shard is not None and index in state:
            wanted = param.shape if change == "mark" else shard.shape
            state[index] = {
                name: getattr(shard, change)(value) if torch.is_tensor(value) and value.shape == wanted else value
                for name, value in state[index].items()
            }
    return {**state_dict, "state": state}


def _distribute(state_dict: dict[str, Any], groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """One group to several, all with its options."""
    (group,) = state_dict["param_groups"]
    ids = group["params"]
    return {**state_dict, "param_groups": [{**group, "params": [ids[i] for i in indices]} for indices in groups]}


def _check_shapes(state_dict: dict[str, Any], shapes: Sequence[torch.Size]) -> None:
    ids = [index for group in state_dict["param_groups"] for index in group["params"]]
    for index, shape in zip(ids, shapes, strict=True):
        for name, value in state_dict["state"].get(index, {}).items():
            wanted = _FACTORED.get(name, torch.Size)(shape)
            if torch.is_tensor(value) and value.dim() > 0 and value.shape != wanted:
                raise CheckpointError(
                    f"{name} of parameter {index} in the checkpoint's optimizer state has shape {tuple(value.shape)}, "
                    f"the model's has {tuple(wanted)}; {_ADVICE}"
                )


def _wrong_size(name: str, stored: int, own: int) -> CheckpointError:
    return CheckpointError(
        f"{name} in the checkpoint's optimizer state has {stored} values, the model has {own}; {_ADVICE}"
    )


def _split(state_dict: dict[str, Any], shapes: Sequence[torch.Size]) -> dict[str, Any]:
    """One flat entry to one entry per parameter."""
    (group,) = state_dict["param_groups"]
    sizes = [shape.numel() for shape in shapes]
    state: dict[int, dict[str, Any]] = {}
    for name, value in state_dict["state"].get(group["params"][0], {}).items():
        if torch.is_tensor(value) and value.dim() > 0:
            if value.numel() != sum(sizes):
                raise _wrong_size(name, value.numel(), sum(sizes))
            parts = [part.view(shape).clone() for part, shape in zip(value.view(-1).split(sizes), shapes, strict=True)]
        else:
            parts = [value] * len(shapes)
        for index, part in enumerate(parts):
            state.setdefault(index, {})[name] = part
    return {**state_dict, "state": state, "param_groups": [{**group, "params": list(range(len(shapes)))}]}


def _join(state_dict: dict[str, Any], size: int) -> dict[str, Any]:
    """One entry per parameter to one flat entry. Every parameter must have been updated equally often."""
    (group,) = state_dict["param_groups"]
    entries = [state_dict["state"].get(index, {}) for index in group["params"]]
    names = list(entries[0])
    if any(list(entry) != names for entry in entries):
        raise CheckpointError(
            "the optimizer state of the checkpoint lacks some parameters (they had no gradient), which one flat "
            "float16 vector cannot express; use --fp16-no-flatten-grads, or start it afresh with --reset-optimizer"
        )
    joined: dict[str, Any] = {}
    for name in names:
        values = [entry[name] for entry in entries]
        if torch.is_tensor(values[0]) and (values[0].dim() > 0 or name != "step"):
            joined[name] = torch.cat([value.reshape(-1) for value in values])
            if joined[name].numel() != size:
                raise _wrong_size(name, joined[name].numel(), size)
        elif any(value != values[0] for value in values):
            raise CheckpointError(
                f"{name} differs between parameters in the checkpoint's optimizer state, which one flat float16 "
                "vector cannot express; use --fp16-no-flatten-grads, or start it afresh with --reset-optimizer"
            )
        else:
            joined[name] = values[0]
    return {**state_dict, "state": {0: joined} if joined else {}, "param_groups": [{**group, "params": [0]}]}
