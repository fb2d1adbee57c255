"""Groups and collectives at ``fairseq.distributed.utils``, as plugins call them; a run without a group is one process.

Of the groups of the original there is one, that of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from fairseq.distributed.placement import Placement, run_rank
from fairseq.distributed.utils import broadcast_object, get_global_group
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.refusals import HERE


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def use_xla() -> bool:
    """False: there are no TPUs here."""
    return False


def get_model_parallel_group() -> None:
    """None: no model is spread over processes."""


def get_rank(group: Any = None) -> int:
    return dist.get_rank(group=group) if _running() else 0


def get_world_size(group: Any = None) -> int:
    return dist.get_world_size(group=group) if _running() else 1


def get_model_parallel_rank() -> int:
    return 0


def get_model_parallel_world_size() -> int:
    return 1


def get_group(group_name: str) -> Any:
    if group_name not in ("global", "data_parallel"):
        raise OutOfScopeError(f"the process group {group_name!r} is out of scope: {HERE}")
    return get_global_group()


def all_reduce(tensor: Tensor, group: Any = None, op: str = "sum") -> Tensor:
    """The sum (or ``op="max"``) over all processes, in place."""
    if get_world_size(group) > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, group=group)
    return tensor


def broadcast(tensor: Tensor, src: int, group: Any = None) -> None:
    """``tensor`` of process ``src``, in place."""
    if get_world_size(group) > 1:
        dist.broadcast(tensor, src=src, group=group)


def all_gather(tensor: Tensor, group: Any = None, return_tensor: bool = False) -> Any:
    """The tensors of all processes, as a list or stacked."""
    found = [tensor]
    if get_world_size(group) > 1:
        found = [torch.empty_like(tensor) for _ in range(get_world_size(group))]
        dist.all_gather(found, tensor.contiguous(), group=group)
    return torch.stack(found) if return_tensor else found


def all_to_all(tensor: Tensor, group: Any = None) -> Tensor:
    """Row block i of every process goes to process i; the first dimension is split evenly."""
    if get_world_size(group) == 1:
        return tensor
    output = torch.zeros_like(tensor)
    dist.all_to_all_single(output, tensor, group=group)
    return output


def broadcast_tensors(
    tensors: list[Tensor] | None, src_rank: int, group: Any, dist_device: torch.device | None = None
) -> list[Tensor]:
    """The tensors of process ``src_rank``, whatever their number, shapes and types."""
    return broadcast_object(tensors, src_rank, group, dist_device)


def new_groups(grouped_ranks: Any) -> Any:
    if not _running():
        return None
    groups = [dist.new_group(list(ranks)) for ranks in grouped_ranks]
    mine = next(number for number, ranks in enumerate(grouped_ranks) if get_rank() in ranks)
    return groups[mine]


def infer_init_method(cfg: Any, force_distributed: bool = False) -> None:
    """Nothing: how a run is started is read from the environment (torchrun, Slurm) where it is started."""


def distributed_main(i: int, main: Callable[..., Any], cfg: Any, kwargs: Mapping[str, Any]) -> Any:
    """``main(cfg, **kwargs)`` in process ``i`` of those that a script has started on this machine, which start no others.

    ``kwargs`` may hold ``start_rank`` and ``after_distributed_init_fn`` (configuration to configuration), as the original's.
    """
    given = dict(kwargs)
    first, prepare = given.pop("start_rank", 0), given.pop("after_distributed_init_fn", None)
    section = cfg.distributed_training
    size, rank = section.distributed_world_size, section.distributed_rank
    if size > 1 and section.distributed_init_method is None:
        raise ConfigError(f"distributed_main needs distributed_init_method, the address where {size} processes meet")
    placement = Placement(size, section.distributed_init_method, first + i if rank is None else rank, device=i)
    return run_rank(cfg, placement, main if prepare is None else lambda own, **more: main(prepare(own), **more), given)


def get_model_parallel_src_rank() -> NoReturn:
    _no_launch("get_model_parallel_src_rank")


def _no_launch(name: str) -> NoReturn:
    raise OutOfScopeError(
        f"fairseq.distributed.utils.{name} belongs to the original's own launch of processes, which is "
        f"out of scope: {HERE}; use torchrun, or torch.distributed.init_process_group"
    )
