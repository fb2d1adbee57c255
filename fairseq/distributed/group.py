"""Who we are among the processes of a run, and what they tell each other.

A single process answers without `torch.distributed`, which is loaded by `distributed_init` only. Data goes between
processes as tensors; other values as what ``torch.load(weights_only=True)`` reads, never as pickled code.
"""

from __future__ import annotations

import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fairseq.errors import LostContactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STALLED = 30 * 60  # seconds: longer than it takes to write a checkpoint


class _Place:
    """Of this process: its rank, the number of all, and where their tensors have to be to be sent."""

    rank = 0
    size = 1
    device: torch.device | None = None


def get_global_rank() -> int:
    """Rank of this process among all processes."""
    return _Place.rank


def get_global_world_size() -> int:
    """Number of processes of the run."""
    return _Place.size


def get_data_parallel_rank() -> int:
    """Rank of this process among those that see different data."""
    return _Place.rank


def get_data_parallel_world_size() -> int:
    """Number of processes that see different data."""
    return _Place.size


def get_global_group() -> Any:
    """The group of all processes; None for a single one (and for torch, which takes it for the group of all)."""
    if _Place.size == 1:
        return None
    import torch.distributed as dist

    return dist.group.WORLD


get_data_parallel_group = get_global_group


def is_master(cfg: Any) -> bool:
    """True on the process that logs and writes; ``cfg`` is the ``distributed_training`` section."""
    return int(getattr(cfg, "distributed_rank", 0) or 0) == 0


def longest_wait(section: Any) -> float:
    """Seconds after which a process that makes no update ends the run; ``section`` is ``distributed_training``."""
    return float(section.heartbeat_timeout if section.heartbeat_timeout > 0 else STALLED)


def distributed_init(cfg: Any) -> int:
    """Meet the other processes as the section ``cfg.distributed_training`` says; returns this one's rank."""
    section = cfg.distributed_training
    if section.distributed_world_size == 1:
        return 0
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and not cfg.common.cpu
    if cuda:
        torch.cuda.set_device(section.device_id)
    dist.init_process_group(
        section.distributed_backend if cuda else "gloo",
        init_method=section.distributed_init_method,
        world_size=section.distributed_world_size,
        rank=section.distributed_rank,
        timeout=timedelta(seconds=2 * longest_wait(section) + 60),  # `watch` is first, and says more
    )
    _Place.rank, _Place.size = section.distributed_rank, section.distributed_world_size
    _Place.device = torch.device("cuda", section.device_id) if cuda else torch.device("cpu")
    return section.distributed_rank


def leave() -> None:
    """Take leave of the other processes; nothing for a single one."""
    if _Place.size == 1:
        return
    import torch.distributed as dist

    _Place.rank, _Place.size, _Place.device = 0, 1, None
    dist.destroy_process_group()


def add_up(values: Tensor) -> Tensor:
    """Add up ``values`` of all processes, in place."""
    import torch.distributed as dist

    dist.all_reduce(values)
    return values


LOST = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe", "store")


def lost_contact(error: RuntimeError) -> LostContactError | None:
    """The error for one of the communication library's; None for any other."""
    import torch.distributed as dist

    text = str(error)
    if not isinstance(error, dist.DistError) and not any(word in text.lower() for word in LOST):
        return None
    first = (text.strip() or type(error).__name__).splitlines()[0]
    return LostContactError(f"process {_Place.rank} of {_Place.size} has lost contact to another one ({first})")


def gather(value: Any) -> list[Any]:
    """``value`` (tensors, numbers, strings, dicts, lists, tuples) of every process, by rank; tensors come on the CPU."""
    if _Place.size == 1:
        return [value]
    import torch
    import torch.distributed as dist

    buffer = io.BytesIO()
    torch.save(value, buffer)
    own = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8).to(_Place.device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=_Place.device) for _ in range(_Place.size)]
    dist.all_gather(sizes, torch.tensor([own.numel()], device=_Place.device))
    longest = max(int(size) for size in sizes)
    parts = [torch.empty(longest, dtype=torch.uint8, device=_Place.device) for _ in range(_Place.size)]
    dist.all_gather(parts, torch.cat([own, own.new_zeros(longest - own.numel())]))
    return [_loaded(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]


def _loaded(part: Tensor) -> Any:
    import torch

    return torch.load(io.BytesIO(part.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


def of_first(value: Any) -> Any:
    """``value`` of the first process."""
    return gather(value if _Place.rank == 0 else None)[0]
