"""What a checkpoint holds: the one place that puts its dictionary together.

Keys in the order of the original::

    args                  None (slot of the oldest files)
    cfg                   the whole configuration as nested plain dictionaries
    model                 OrderedDict of parameters and buffers
    criterion             the criterion's state, or None when it has no parameters
    optimizer_history     one entry per run of the resume chain, see `history_entry`
    task_state            dictionary of the task, {} for masked language models
    extra_state           see `extra_state`
    last_optimizer_state  state and param_groups; absent with no_save_optimizer_state

Every tensor is on the CPU, and half precision is widened to float32. Tensors that share memory (the tied output matrix)
still share it in the file.
"""

from __future__ import annotations

import argparse
import enum
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fairseq.errors import CheckpointError
from fairseq.tree import HALF


def history_entry(
    criterion_name: str, optimizer_name: str, lr_scheduler_state: Mapping[str, Any], num_updates: int
) -> dict[str, Any]:
    """One entry of ``optimizer_history``; the names are class names, compared on resuming."""
    return {
        "criterion_name": criterion_name,
        "optimizer_name": optimizer_name,
        "lr_scheduler_state": dict(lr_scheduler_state),
        "num_updates": num_updates,
    }


def extra_state(
    metrics: Mapping[str, list],
    previous_training_time: float,
    train_iterator: Mapping[str, Any],
    val_loss: float | None,
    best: float | None = None,
    ema: Mapping[str, torch.Tensor] | None = None,
    ema_fp32_params: Mapping[str, torch.Tensor] | None = None,
    additions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``extra_state``. ``previous_training_time`` in seconds; ``additions``: keys that the original ignores."""
    state: dict[str, Any] = {"metrics": metrics, "previous_training_time": previous_training_time}
    if ema is not None:
        state["ema"] = ema
    if ema_fp32_params is not None:
        state["ema_fp32_params"] = ema_fp32_params
    state["train_iterator"] = dict(train_iterator)
    state["val_loss"] = val_loss
    if best is not None:
        state["best"] = best
    state.update(additions or {})
    return state


def build_state(
    *,
    cfg: Mapping[str, Any],
    model: Mapping[str, torch.Tensor],
    criterion: Mapping[str, torch.Tensor] | None,
    optimizer_history: list[dict[str, Any]],
    task_state: Mapping[str, Any] | None,
    extra_state: Mapping[str, Any],
    optimizer_state: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The dictionary to be saved; ``optimizer_state`` None leaves the key out.

    Raises CheckpointError for a value that could not be loaded again.
    """
    state: dict[str, Any] = {
        "args": None,
        "cfg": cfg,
        "model": model,
        "criterion": criterion,
        "optimizer_history": optimizer_history,
        "task_state": {} if task_state is None else task_state,
        "extra_state": extra_state,
    }
    if optimizer_state is not None:
        state["last_optimizer_state"] = optimizer_state
    return portable(state)


def portable(state: Any, snapshot: bool = False) -> Any:
    """A copy of the nested containers of ``state`` with its tensors made ready for saving, see the module's text.

    With ``snapshot`` no tensor shares memory with the run, which may then go on while the file is being written.
    """
    return _Copier(snapshot).copy(state, "")


class _Copier:
    """One walk over a state; remembers converted tensors, so that those which share memory keep sharing it."""

    def __init__(self, snapshot: bool) -> None:
        self.snapshot = snapshot
        self.tensors: dict[tuple, torch.Tensor] = {}
        self.alive: list[torch.Tensor] = []  # an address is only a key as long as its tensor lives

    def copy(self, value: Any, where: str) -> Any:
        if (
            value is None
            or isinstance(value, (bool, int, float, str, bytes))
            and not isinstance(value, (enum.Enum, np.generic))
        ):
            return value
        if torch.is_tensor(value):
            return self.tensor(value)
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        if isinstance(value, (list, tuple, set)):
            items = [self.copy(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return type(value)(items) if type(value) in (tuple, set) else items
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**self._mapping(vars(value), where))
        if isinstance(value, enum.Enum):
            return self.copy(value.value, where)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (np.ndarray, torch.dtype, torch.device, torch.Size)):
            return value
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise CheckpointError(
            f"cannot save {where.lstrip('.')} in a checkpoint: a {type(value).__module__}.{type(value).__qualname__} could not "
            "be loaded again; store numbers, strings, tensors and containers of them"
        )

    def _mapping(self, value: Mapping, where: str) -> dict:
        ordered = isinstance(value, OrderedDict)
        result: dict = OrderedDict() if ordered else {}
        for key, item in value.items():
            key = self.copy(key, where)
            result[key] = self.copy(item, f"{where}.{key}")
        if ordered:
            vars(result).update(vars(value))  # `_metadata` of a state dict
        return result

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        if value.layout != torch.strided:
            return value.cpu()
        storage = value.untyped_storage()
        key = (
            storage.data_ptr(),
            value.storage_offset(),
            tuple(value.shape),
            value.stride(),
            value.dtype,
            value.device,
        )
        # Tensors without memory (empty, meta) have no address to be told apart by.
        known = self.tensors.get(key) if storage.data_ptr() else None
        if known is not None:
            return known
        saved = value.to("cpu", torch.float32 if value.dtype in HALF else value.dtype)
        # torch.save writes whole storages: a view must not drag its flat buffer into the file.
        is_view = saved.untyped_storage().nbytes() > saved.numel() * saved.element_size()
        if is_view or self.snapshot and saved.untyped_storage().data_ptr() == storage.data_ptr():
            saved = saved.clone(memory_format=torch.contiguous_format)
        self.tensors[key] = saved
        self.alive.append(value)
        return saved
