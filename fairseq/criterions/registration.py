"""Registering and building criterions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.criterions.fairseq_criterion import FairseqCriterion
from fairseq.errors import ConfigError
from fairseq.registry import CRITERIONS, RegistryView

C = TypeVar("C")

CRITERION_REGISTRY = RegistryView(CRITERIONS)


def register_criterion(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: the criterion becomes available as ``name``, with the settings of ``dataclass``."""
    return CRITERIONS.register(name, dataclass=dataclass, base=FairseqCriterion)


def build_criterion(cfg: Any, task: Any) -> FairseqCriterion:
    """The criterion that ``cfg`` names: a node with ``_name``, a Namespace with ``criterion``, or the name itself.

    Raises ConfigError when there is no such criterion, OutOfScopeError when this project has none.
    """
    name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
    if not name:
        raise ConfigError(f"no criterion is given; known: {', '.join(CRITERIONS.names())}")
    return CRITERIONS.get(name).build_criterion(cfg, task)
