"""The mean of the weights of several checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError
from fairseq.tree import HALF


class DifferentParametersError(CheckpointError, KeyError):
    """Checkpoints of different models."""


def average_checkpoints(inputs: Sequence[str]) -> dict[str, Any]:
    """The first file's state with ``model`` replaced by the mean over all files.

    Half precision is widened to float32; whole numbers are divided rounding down, as in the original. Tensors that are
    tied in the first file stay tied. Raises CheckpointError for no files, or a file without ``model``, and
    DifferentParametersError (a KeyError) when parameter names differ.
    """
    if not inputs:
        raise CheckpointError("no checkpoints to average; name at least one")
    result: dict[str, Any] = {}
    sums: OrderedDict[str, torch.Tensor] = OrderedDict()
    tied: dict[str, str] = {}  # name -> the first name of the same tensor
    for path in inputs:
        state = load(path)
        if not isinstance(state.get("model"), dict):
            raise CheckpointError(f"{path} has no 'model'; only checkpoints of fairseq can be averaged")
        weights = state["model"]
        if not result:
            result, tied = state, _ties(weights)
        elif list(weights) != list(sums):
            odd = sorted(set(weights) ^ set(sums)) or list(weights)
            raise DifferentParametersError(
                f"{path} has other parameters than {inputs[0]}, for example {odd[0]}; average checkpoints of one model"
            )
        for name, value in weights.items():
            value = value.float() if value.dtype in HALF else value
            if name not in sums:
                sums[name] = value.clone() if tied[name] == name else sums[tied[name]]
            elif tied[name] == name:
                sums[name] += value
    for name, total in sums.items():
        if tied[name] == name:
            divide = total.div_ if total.is_floating_point() else total.floor_divide_
            divide(len(inputs))
    result["model"] = sums
    return result


def _ties(weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Each name's first name of the same memory; every tensor of its own stands for itself."""
    first: dict[tuple, str] = {}
    ties = {}
    for name, value in weights.items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        ties[name] = first.setdefault(key, name)
    return ties
