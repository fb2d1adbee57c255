"""What a checkpoint holds: the one place that puts its dictionary together.

Keys in the order of the original::

    args                  None (slot of the oldest files)
    cfg                   the whole configuration as nested plain dictionaries
    model                 OrderedDict of parameters and buffers
    criterion             the criterion's state, or None when it has no parameters
    optimizer_history     one entry per run of the resume chain: criterion_name and optimizer_name (class names, compared
                          on resuming), lr_scheduler_state, num_updates
    task_state            dictionary of the task, {} for masked language models
    extra_state           metrics, previous_training_time, [ema, ema_fp32_params], train_iterator, val_loss, [best],
                          [early_stop] (which the original ignores), [the class name of a task that stores more]
    last_optimizer_state  state and param_groups; absent with no_save_optimizer_state

    shards                where tensors are that are spread over the processes, see `fairseq.checkpoint.sharded`; absent
                          in an ordinary file

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
from fairseq.tree import HALF, is_sharded


def build_state(
    cfg: Mapping[str, Any], states: Mapping[str, Any], position: Mapping[str, Any], val_loss: float | None
) -> dict[str, Any]:
    """The checkpoint of the run's parts with their ``states`` at ``position``, the state of the data iterator.

    Raises CheckpointError for a value that could not be loaded again.
    """
    entry = {**states["classes"], **{key: states[key] for key in ("lr_scheduler_state", "num_updates")}}
    extra = {
        **states.get("task_extra", {}),
        "metrics": states["meters"],
        "previous_training_time": states["training_time"],  # seconds
        **states.get("ema", {}),
        "train_iterator": dict(position),
        "val_loss": val_loss,
    }
    for key in ("best", "early_stop"):
        if states[key] is not None:
            extra[key] = states[key]
    state = {
        "args": None,
        "cfg": cfg,
        "model": states["model"],
        "criterion": states.get("criterion"),
        "optimizer_history": [*states["optimizer_history"], entry],
        "task_state": states["task"],
        "extra_state": extra,
    }
    if states["optimizer"] is not None:
        state["last_optimizer_state"] = states["optimizer"]
    return portable(state)


def portable(state: Any, snapshot: bool = False) -> Any:
    """A copy of the nested containers of ``state`` with its tensors made ready for saving, see the module's text.

    With ``snapshot`` no tensor shares memory with the run, which may then go on while the file is being written.
    """
    return _Copier(snapshot).copy(state, "")


_PLAIN = (bool, int, float, str, bytes, np.ndarray, torch.dtype, torch.device)


class _Copier:
    """One walk over a state; remembers converted tensors, so that those which share memory keep sharing it."""

    def __init__(self, snapshot: bool) -> None:
        self.snapshot = snapshot
        self.tensors: dict[tuple, torch.Tensor] = {}
        self.alive: list[torch.Tensor] = []  # an address is only a key as long as its tensor lives

    def copy(self, value: Any, where: str) -> Any:
        if isinstance(value, enum.Enum):
            return self.copy(value.value, where)
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, _PLAIN):
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
        if is_sharded(value):
            return self._spread(value)
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

    def _spread(self, value: Any) -> Any:
        """A part of a tensor stays where it is until it is written."""
        local = value.to_local()
        key = (local.data_ptr(), tuple(value.shape), local.stride(), value.dtype)
        known = self.tensors.get(key) if local.numel() else None
        if known is None:
            known = self.tensors[key] = value.float() if value.dtype in HALF else value
            self.alive.append(value)
        return known
