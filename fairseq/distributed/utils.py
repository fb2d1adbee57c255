"""Launching and talking to other processes, under the names of the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fairseq.distributed.group import (
    add_up,
    distributed_init,
    gather,
    get_data_parallel_group,
    get_data_parallel_rank,
    get_data_parallel_world_size,
    get_global_group,
    get_global_rank,
    get_global_world_size,
    is_master,
)
from fairseq.distributed.placement import find_placement, run_rank
from fairseq.distributed.processes import run_processes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "all_gather_list",
    "all_reduce_dict",
    "broadcast_object",
    "call_main",
    "distributed_init",
    "get_data_parallel_group",
    "get_data_parallel_rank",
    "get_data_parallel_world_size",
    "get_global_group",
    "get_global_rank",
    "get_global_world_size",
    "is_master",
]


def call_main(cfg: Any, main: Callable[..., Any], **kwargs: Any) -> Any:
    """Run ``main(cfg, **kwargs)`` on every process of the run; returns what it returns on the first one.

    Where processes are started here, ``main`` must be a function of a module, and its arguments are pickled.
    """
    placement = find_placement(cfg)
    return (
        run_processes(cfg, placement, main, kwargs) if placement.start > 0 else run_rank(cfg, placement, main, kwargs)
    )


def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
    """``data`` of every process, by rank; its size is not limited."""
    return gather(data)


def broadcast_object(obj: Any, src_rank: int = 0, group: Any = None, dist_device: Any = None) -> Any:
    """``obj`` of the process ``src_rank``."""
    return gather(obj if src_rank == get_global_rank() else None)[src_rank]


def all_reduce_dict(data: Mapping[str, Any], device: Any, group: Any = None) -> dict[str, Any]:
    """The sums of the numbers in ``data`` over all processes; every one has the same keys."""
    import torch

    if get_global_world_size() == 1:
        return dict(data)
    keys = sorted(data)
    numbers = [torch.as_tensor(data[key]).detach().to(device=device, dtype=torch.float64).reshape(()) for key in keys]
    sums: list[Tensor] = list(add_up(torch.stack(numbers))) if keys else []
    return dict(zip(keys, sums, strict=True))
