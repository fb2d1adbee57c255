"""Registering and building criterions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.criterions.fairseq_criterion import FairseqCriterion
from fairseq.errors import ConfigError
from fairseq.registry import CRITERIONS

C = TypeVar("C", bound=type[Any])

CRITERION_REGISTRY = CRITERIONS.registered()


def register_criterion(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: the criterion becomes available as ``name``, with the settings of ``dataclass``."""

    def add(cls: C) -> C:
        if not issubclass(cls, FairseqCriterion):
            raise ValueError(f"the criterion {name!r} ({cls.__name__}) must derive from FairseqCriterion")
        cls.__dataclass = dataclass  # type: ignore[attr-defined]
        return CRITERIONS.register(name, dataclass=dataclass)(cls)

    return add


def build_criterion(cfg: Any, task: Any) -> FairseqCriterion:
    """The criterion that ``cfg`` names: a node with ``_name``, a Namespace with ``criterion``, or the name itself.

    Raises ConfigError when there is no such criterion, OutOfScopeError when this project has none.
    """
    name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
    if not name:
        raise ConfigError(f"no criterion is given; known: {', '.join(CRITERIONS.names())}")
    return CRITERIONS.get(name).build_criterion(cfg, task)
