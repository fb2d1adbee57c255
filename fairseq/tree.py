"""Nested samples and states: one function applied to every tensor in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """``value`` (dicts, lists, tuples, sets) with ``function`` applied to its tensors; everything else as it is.

    An object with a method ``map_tensors(function)`` does it itself.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        items = ((key, map_tensors(function, item)) for key, item in value.items())
        if not isinstance(value, OrderedDict):
            return dict(items)
        result = OrderedDict(items)
        vars(result).update(vars(value))  # `_metadata` of a state dict
        return result
    if isinstance(value, (list, tuple, set)):
        make = getattr(value, "_make", type(value))  # a named tuple takes its fields one by one
        return make(map_tensors(function, item) for item in value)
    return value.map_tensors(function) if hasattr(value, "map_tensors") else value


def is_sharded(tensor: Any) -> bool:
    """Whether ``tensor`` is one of torch's ``DTensor`` (whose module takes long to load)."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "full_tensor")
