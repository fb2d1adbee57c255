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

    Its tensors are still those of the run: it is for `portable`, or a snapshot, before it is written.
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
    return state


def portable(state: Any) -> Any:
    """A copy of the nested containers of ``state`` with its tensors made ready for saving, see the module's text.

    Raises CheckpointError for a value that could not be loaded again.
    """
    return _Copier(None).copy(state, "")


class Snapshots:
    """Takes snapshots of a run: `portable` copies that share no memory with it, so that it may go on meanwhile.

    The memory of the last one is used again by the next, which is then no longer good: new memory costs several times as
    much as the copy, because every page of it has to be found and cleared first. For CUDA it is page-locked, and the
    copies are only ordered: `wait` before the numbers are read.
    """

    def __init__(self) -> None:
        self._spare: dict[tuple, list[torch.Tensor]] = {}
        self._used: dict[tuple, list[torch.Tensor]] = {}
        self._copied: dict[torch.device, torch.cuda.Event] = {}

    def take(self, state: Any) -> Any:
        """The snapshot. Raises CheckpointError as `portable`, and torch's errors where there is not enough memory."""
        self._spare, self._used = self._used, {}
        self._copied.clear()
        try:
            snapshot = _Copier(self).copy(state, "")
        except BaseException:
            self._used = {}  # half a snapshot is of no use to anybody
            raise
        finally:
            self._spare = {}
        for device in self._copied:
            self._copied[device].record(torch.cuda.current_stream(device))
        return snapshot

    def wait(self) -> None:
        """Until the tensors of the snapshot hold what they should."""
        for event in self._copied.values():
            event.synchronize()

    def copy(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``value`` in memory of its own."""
        key = (value.shape, dtype, value.is_cuda)
        spare = self._spare.get(key)
        saved = spare.pop() if spare else torch.empty(value.shape, dtype=dtype, pin_memory=value.is_cuda)
        saved.copy_(value, non_blocking=value.is_cuda)
        if value.is_cuda and value.device not in self._copied:
            self._copied[value.device] = torch.cuda.Event()
        self._used.setdefault(key, []).append(saved)
        return saved


_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device)


class _Copier:
    """One walk over a state; remembers converted tensors, so that those which share memory keep sharing it."""

    def __init__(self, snapshots: Snapshots | None) -> None:
        self.snapshots = snapshots
        self.tensors: dict[tuple, torch.Tensor] = {}
        self.alive: list[torch.Tensor] = []  # an address is only a key as long as its tensor lives

    def copy(self, value: Any, where: str) -> Any:
        if isinstance(value, enum.Enum):
            return self.copy(value.value, where)
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, np.ndarray):
            return value if self.snapshots is None else value.copy()
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
            return value.cpu() if self.snapshots is None else value.cpu().clone()
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
        dtype = torch.float32 if value.dtype in HALF else value.dtype
        if self.snapshots is not None:
            saved = self.snapshots.copy(value, dtype)
        else:
            saved = value.to("cpu", dtype)
            # torch.save writes whole storages: a view must not drag its flat buffer into the file.
            if saved.untyped_storage().nbytes() > saved.numel() * saved.element_size():
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
