"""Registering tasks and setting them up from their configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from fairseq.errors import ConfigError
from fairseq.registry import TASKS
from fairseq.tasks.fairseq_task import FairseqTask

T = TypeVar("T", bound=type[FairseqTask])


def register_task(name: str, dataclass: type | None = None) -> Callable[[T], T]:
    """Class decorator: the task becomes available as ``--task name``, with ``dataclass`` for its settings."""

    def add(cls: T) -> T:
        if not (isinstance(cls, type) and issubclass(cls, FairseqTask)):
            raise ValueError(f"the task {name!r} ({cls!r}) must derive from FairseqTask")
        cls.__dataclass = dataclass  # type: ignore[attr-defined]
        return TASKS.register(name, dataclass=dataclass)(cls)

    return add


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


class _Registered(Mapping[str, Any]):
    """The old dictionaries: every known task, built-ins too, imported when looked up."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def __getitem__(self, name: str) -> Any:
        if name not in TASKS:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(TASKS.names())

    def __len__(self) -> int:
        return len(TASKS.names())


TASK_REGISTRY = _Registered(TASKS.get)
TASK_DATACLASS_REGISTRY = _Registered(TASKS.config_class)
