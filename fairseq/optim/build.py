"""Register optimizers by decorator and build the chosen one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fairseq.errors import ConfigError
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.registry import OPTIMIZERS, RegistryView

C = TypeVar("C")

OPTIMIZER_REGISTRY = RegistryView(OPTIMIZERS)


def register_optimizer(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: make a :class:`FairseqOptimizer` available as ``--optimizer name``."""
    return OPTIMIZERS.register(name, dataclass=dataclass, base=FairseqOptimizer)


def build_optimizer(cfg: Any, params: Iterable[Any], **kwargs: Any) -> FairseqOptimizer:
    """Build the optimizer that ``cfg`` names.

    ``cfg``: the ``optimizer`` node (its ``_name`` chooses), an old flat Namespace (``cfg.optimizer`` chooses), or a
    name. ``params``: parameters, ``(name, parameter)`` pairs, or old-style dictionaries of parameters; those that need
    no gradient are left out. Raises ConfigError when nothing is chosen or nothing is to be trained.
    """
    name = cfg if isinstance(cfg, str) else getattr(cfg, "_name", None) or getattr(cfg, "optimizer", None)
    if not isinstance(name, str):
        raise ConfigError(f"no optimizer was chosen; give --optimizer (known: {', '.join(OPTIMIZERS.names())})")
    cls = OPTIMIZERS.get(name)
    config_class: Any = OPTIMIZERS.config_class(name)
    if config_class is not None and isinstance(cfg, str):
        cfg = config_class()
    elif config_class is not None and isinstance(cfg, argparse.Namespace):
        cfg = config_class.from_namespace(cfg)
    given = [item for p in params for item in (p.values() if isinstance(p, dict) else (p,))]
    pairs = [item if isinstance(item, tuple) else ("", item) for item in given]
    pairs = [(key, param) for key, param in pairs if param.requires_grad]
    if not pairs:
        raise ConfigError("the model has no parameter to train")
    builder = getattr(cls, "build_optimizer", cls)
    return builder(cfg, pairs if cls.needs_names else [param for _, param in pairs], **kwargs)
