"""Registering tasks and setting them up from their configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.errors import ConfigError
from fairseq.registry import TASKS, RegistryView
from fairseq.tasks.fairseq_task import FairseqTask

C = TypeVar("C")

TASK_REGISTRY = RegistryView(TASKS)
TASK_DATACLASS_REGISTRY = RegistryView(TASKS, TASKS.config_class)


def register_task(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: the task becomes available as ``--task name``, with ``dataclass`` for its settings."""
    return TASKS.register(name, dataclass=dataclass, base=FairseqTask)


def get_task(name: str) -> type[FairseqTask]:
    """The task class called ``name``."""
    return TASKS.get(name)


def setup_task(cfg: Any, bpe: Any = None, **kwargs: Any) -> FairseqTask:
    """The task that ``cfg`` describes: a configuration node, a dataclass instance or a (flat) argparse.Namespace.

    ``bpe`` is the run's encoder section (whole-word masking needs it); further arguments go to the task's own
    ``setup_task``. Raises ConfigError for an unknown task and OutOfScopeError for one that this project leaves out.
    """
    name = getattr(cfg, "task", None)
    if not isinstance(name, str):
        name = getattr(cfg, "_name", None)
    if not name:
        raise ConfigError(f"the task section names no task; known: {', '.join(TASKS.names())}")
    cls = TASKS.get(name)
    config = TASKS.config_class(name)
    if isinstance(cfg, argparse.Namespace) and config is not None and hasattr(config, "from_namespace"):
        cfg = config.from_namespace(cfg)
    task = cls.setup_task(cfg, **kwargs)
    # Set afterwards, because a plugin's setup_task may hand its arguments on to a constructor that does not know it.
    task.bpe_config = bpe
    return task
