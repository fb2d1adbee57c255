"""Register learning-rate schedules by decorator and build the chosen one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.errors import ConfigError
from fairseq.optim.lr_scheduler.fairseq_lr_scheduler import FairseqLRScheduler
from fairseq.registry import LR_SCHEDULERS, RegistryView

C = TypeVar("C")

LR_SCHEDULER_REGISTRY = RegistryView(LR_SCHEDULERS)


def register_lr_scheduler(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: make a :class:`FairseqLRScheduler` available as ``--lr-scheduler name``."""
    return LR_SCHEDULERS.register(name, dataclass=dataclass, base=FairseqLRScheduler)


def build_lr_scheduler(cfg: Any, optimizer: Any) -> FairseqLRScheduler:
    """Build the schedule that ``cfg`` names: the ``lr_scheduler`` node, or an old flat Namespace."""
    name = getattr(cfg, "_name", None) or getattr(cfg, "lr_scheduler", None)
    if not isinstance(name, str):
        known = ", ".join(LR_SCHEDULERS.names())
        raise ConfigError(f"no learning-rate schedule was chosen; give --lr-scheduler (known: {known})")
    cls = LR_SCHEDULERS.get(name)
    config_class: Any = LR_SCHEDULERS.config_class(name)
    if config_class is not None and isinstance(cfg, argparse.Namespace):
        cfg = config_class.from_namespace(cfg)
    return getattr(cls, "build_lr_scheduler", cls)(cfg, optimizer)
