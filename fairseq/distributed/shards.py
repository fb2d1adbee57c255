"""Tensors of which every process holds some rows: what they are of, and how they become whole again.

The parameters of a sharded model, and what checkpoints collect of them, are torch's ``DTensor``: the rows of this process
with the shape of the whole. Optimizers get the rows alone, as a plain parameter that shares their memory, with the
attribute ``shard`` (`Shard`), which knows the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fairseq.distributed import group
from fairseq.tree import is_sharded, map_tensors


@dataclass(frozen=True)
class Shard:
    """The place of some rows (of the first dimension) in a whole tensor of ``shape``, laid out as ``like``, a DTensor."""

    like: Any
    device: torch.device
    """Where the processes communicate."""

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    def mark(self, rows: Tensor) -> Tensor:
        """``rows`` of this process, as a tensor that knows that it is part of a whole."""
        from torch.distributed.tensor import DTensor

        like = self.like
        return DTensor.from_local(  # type: ignore[no-untyped-call]
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def cut(self, whole: Tensor) -> Tensor:
        """The rows of this process in ``whole``, or in a tensor that was marked."""
        if is_sharded(whole):
            return own_rows(whole)
        start = first_row(self.like)
        return whole[start : start + len(own_rows(self.like))].clone()

    def norm(self, shards: Tensor, rest: Tensor) -> Tensor:
        """The norm of ``shards`` of all processes, each with the norm of its own, and of a ``rest`` that all of them have."""
        squares = group.add_up(shards.to(self.device, torch.float64).square()).to(shards.device)
        return (squares + rest.to(squares).square()).sqrt().float()


def own_rows(tensor: Any) -> Tensor:
    """The rows that this process holds of the sharded ``tensor``, sharing its memory."""
    with torch.no_grad():  # with gradients it would be a node of their graph
        return tensor.to_local()


def first_row(tensor: Any) -> int:
    """Where `own_rows` begin in the whole: as in `torch.chunk`, all but the last processes have equally many."""
    size = tensor.device_mesh.size()
    each = math.ceil(tensor.shape[0] / size)
    return min(each * tensor.device_mesh.get_local_rank(), tensor.shape[0])


def rows_for_optimizer(parameter: Any, device: torch.device) -> Parameter:
    """The rows of the sharded ``parameter`` as a parameter of their own, with the same memory."""
    rows = Parameter(own_rows(parameter), requires_grad=parameter.requires_grad)
    rows.shard = Shard(parameter, device)  # type: ignore[attr-defined]
    return rows


def whole(state: Any, keep: bool) -> Any:
    """The nested ``state`` with all that is sharded in it whole, on the CPU. All processes have to call it.

    One tensor after the other, so that no device holds more than one. Without ``keep`` they are thrown away, and None
    stands for them. Tensors that share their memory (tied weights) still do afterwards.
    """
    known: dict[tuple[Any, ...], Tensor | None] = {}

    def gathered(tensor: Any) -> Any:
        if not is_sharded(tensor):
            return tensor
        rows = own_rows(tensor)
        # Not by the address of the rows, as there may be none.
        key = (rows.untyped_storage()._cdata, rows.storage_offset(), tensor.shape, tensor.dtype)
        if key not in known:
            there = rows.to(tensor.device_mesh.device_type)  # shards may be on the CPU, from where nothing is sent
            full: Tensor = Shard(tensor, there.device).mark(there).full_tensor()  # type: ignore[attr-defined]
            known[key] = full.cpu() if keep else None
        return known[key]

    return map_tensors(gathered, state)


def take_whole_tensors(model: nn.Module) -> None:
    """Let ``load_state_dict`` of the sharded ``model`` take whole tensors, too: each process takes its rows of them."""
    for module in model.modules():
        own = {name: parameter for name, parameter in module.named_parameters(recurse=False) if is_sharded(parameter)}
        if own:
            module.register_load_state_dict_pre_hook(partial(_take_rows, own))


def _take_rows(own: Mapping[str, Tensor], module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    named = {prefix + name: parameter for name, parameter in own.items() if prefix + name in state}
    state.update(placed({name: state[name] for name in named}, named))


def placed(state: Any, like: Any) -> Any:
    """The nested ``state`` with its whole tensors laid out as those in the same places of ``like`` are."""
    if isinstance(state, Mapping):
        known = like if isinstance(like, Mapping) else {}
        return {key: placed(value, known.get(key)) for key, value in state.items()}
    if not (is_sharded(like) and torch.is_tensor(state) and state.shape == like.shape) or is_sharded(state):
        return state
    shard = Shard(like, own_rows(like).device)
    return shard.mark(shard.cut(state).to(shard.device))
