"""Where the processes of a run come from: torchrun, SLURM, an address that is given, or this process, which starts them.

| who starts them | how it is recognized |
|---|---|
| an address by hand | ``--distributed-init-method``, with ``--distributed-rank`` |
| torchrun and its like | ``MASTER_ADDR``, ``MASTER_PORT``, ``WORLD_SIZE`` and ``RANK`` in the environment |
| ``srun`` with several tasks | ``SLURM_STEP_NUM_TASKS`` above 1 |
| this process, one per GPU (or ``--distributed-world-size``) | neither of these |
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass.configs import visible_gpus
from fairseq.distributed.group import distributed_init, leave, longest_wait, lost_contact
from fairseq.distributed.watch import watched
from fairseq.ending import INTERRUPTED, hear_no_more
from fairseq.errors import ConfigError, FairseqError

PORTS = range(20000, 60000)


@dataclass
class Placement:
    """The processes of a run, as one of them sees them, or the one that starts them."""

    size: int = 1
    """Processes of the run."""
    address: str | None = None
    """Where they meet, for `torch.distributed.init_process_group`."""
    rank: int = 0
    """Of this process, or of the first one that it starts."""
    device: int = 0
    """The GPU of this process."""
    start: int = 0
    """Processes to start here; 0: this one is one of them."""


def run_rank(cfg: Any, placement: Placement, main: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    """This process's part of the run."""
    section = cfg.distributed_training
    section.distributed_world_size = placement.size
    if placement.size == 1:
        section.distributed_rank = 0
        return main(cfg, **kwargs)
    section.distributed_rank, section.device_id = placement.rank, placement.device
    given, section.distributed_init_method = section.distributed_init_method, placement.address
    distributed_init(cfg)
    section.distributed_init_method = given  # checkpoints hold what was asked for
    try:
        with watched(longest_wait(section)):
            result = main(cfg, **kwargs)
    except SystemExit as end:  # all of them have agreed on it
        if end.code == INTERRUPTED:
            hear_no_more()
        leave()
        raise
    except RuntimeError as error:
        lost = None if isinstance(error, FairseqError) else lost_contact(error)
        if lost is None:
            raise
        raise lost from None
    leave()
    return result


def find_placement(cfg: Any, environment: Mapping[str, str] = os.environ) -> Placement:
    """What ``cfg`` and the environment say. Raises ConfigError where they do not fit together."""
    section, cpu = cfg.distributed_training, cfg.common.cpu
    if section.distributed_init_method is not None:
        return _by_address(section, cpu)
    if all(environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")):
        return _by_torchrun(environment)
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1 or (
        section.distributed_port > 0 and _number(environment, "SLURM_STEP_NUM_NODES", 1) > 1
    ):
        return _by_slurm(section, cpu, environment)
    return _by_ourselves(section, cpu)


def _by_address(section: Any, cpu: bool) -> Placement:
    size, rank = section.distributed_world_size, section.distributed_rank or 0
    placement = Placement(size, section.distributed_init_method, rank, section.device_id)
    if not section.distributed_no_spawn and size > 1:
        here = section.distributed_num_procs if section.distributed_num_procs > 1 else 0
        placement.start = here or (size if cpu else min(_gpus(), size))
        placement.start = 0 if placement.start == 1 else placement.start
    if not 0 <= rank < size:
        raise ConfigError(f"distributed_rank must be from 0 to {size - 1} (distributed_world_size - 1), but is {rank}")
    return placement


def _by_torchrun(environment: Mapping[str, str]) -> Placement:
    size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
    return Placement(size, "env://", rank, _number(environment, "LOCAL_RANK", 0))


def _by_slurm(section: Any, cpu: bool, environment: Mapping[str, str]) -> Placement:
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1)
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    port = section.distributed_port
    if port <= 0:  # the same for all tasks, and another one for each job
        port = PORTS[_number(environment, "SLURM_JOB_ID", 0) % len(PORTS)]
    address = f"tcp://{first_host(listed)}:{port}"
    per_node = 1 if cpu or section.distributed_no_spawn else _gpus()
    if tasks == nodes and per_node > 1:  # a task for each machine: it starts a process for each of its GPUs
        first = _number(environment, "SLURM_NODEID", 0) * per_node
        return Placement(nodes * per_node, address, first, 0, start=per_node)
    rank, device = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID", 0)
    # With --gpus-per-task every task sees only its own.
    return Placement(tasks, address, rank, 0 if cpu else device % max(1, _gpus()))


def first_host(listed: str) -> str:
    """The first machine of SLURM's list, such as ``node[03-07,12],gpu1``."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?", listed.strip())
    if found is None:
        raise ConfigError(f"SLURM_STEP_NODELIST is {listed!r}: it does not name a machine")
    return found[1] + (found[2] or "")


def _by_ourselves(section: Any, cpu: bool) -> Placement:
    size = section.distributed_world_size
    if size == visible_gpus() and size > 1:  # the default, found without asking the driver
        size = 1 if cpu else max(1, _gpus())
    if size < 1:
        raise ConfigError(f"distributed_world_size must be at least 1, but is {size}")
    if size == 1:
        return Placement(device=section.device_id)
    if section.distributed_no_spawn:
        raise ConfigError(
            f"--distributed-no-spawn starts no processes, but {size} were asked for: start them with torchrun or srun, or "
            "give --distributed-init-method and --distributed-rank"
        )
    gpus = 0 if cpu else _gpus()
    if gpus and size > gpus:
        raise ConfigError(
            f"--distributed-world-size {size}, but this machine has {gpus} GPU(s): lower it, or give --cpu"
        )
    return Placement(size, f"tcp://127.0.0.1:{free_port()}", start=size)


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} must be a number, but is {text!r}")
    return int(text)
