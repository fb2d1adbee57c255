"""Ranks, reductions and the launch of a run. One process for now; every caller already goes through here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fairseq.errors import ConfigError


def get_global_rank() -> int:
    """Rank of this process among all processes."""
    return 0


def get_global_world_size() -> int:
    """Number of processes of the run."""
    return 1


def get_data_parallel_rank() -> int:
    """Rank of this process among those that see different data."""
    return 0


def get_data_parallel_world_size() -> int:
    """Number of processes that see different data."""
    return 1


def is_master(cfg: Any) -> bool:
    """True on the process that logs and writes; ``cfg`` is the ``distributed_training`` section."""
    return int(getattr(cfg, "distributed_rank", 0) or 0) == 0


def check_world_size(cfg: Any) -> None:
    """Refuse a run of several processes; ``cfg`` is the ``distributed_training`` section."""
    asked = max(int(cfg.distributed_world_size or 1), int(os.environ.get("WORLD_SIZE", "1") or 1))
    if asked > 1:
        raise ConfigError(
            f"a world size of {asked} was asked for, but training on more than one process is not supported yet; "
            "start a single process with --distributed-world-size 1 (distributed_training.distributed_world_size=1)"
        )


def call_main(cfg: Any, main: Callable[..., Any], **kwargs: Any) -> Any:
    """Launch ``main(cfg, **kwargs)`` on every process of the run and return what it returns."""
    check_world_size(cfg.distributed_training)
    return main(cfg, **kwargs)
