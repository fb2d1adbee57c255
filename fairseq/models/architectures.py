"""Named architectures: functions that fill the values a user did not give. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.errors import ConfigError
from fairseq.registry import ARCHITECTURE_MODELS, ARCHITECTURES, MODELS, nearest

F = TypeVar("F", bound=Callable[[Any], None])


def register_model_architecture(model_name: str, arch_name: str) -> Callable[[F], F]:
    """Decorator: ``function(cfg_model)`` becomes the architecture ``arch_name`` of the model ``model_name``.

    The function receives the values given so far (an ``argparse.Namespace`` or a ``DictConfig``) and fills the missing
    ones in place. Raises ConfigError when the model is unknown and ValueError when the name is taken.
    """

    def add(function: F) -> F:
        if model_name not in MODELS:
            known = MODELS.names()
            raise ConfigError(
                f"architecture {arch_name!r} is for the unknown model {model_name!r}{nearest(model_name, known) or '.'} "
                f"Register the model first; known: {', '.join(known)}"
            )
        if not callable(function):
            raise ValueError(f"the architecture {arch_name!r} must be a function, but is {function!r}")
        ARCHITECTURES.register(arch_name, dataclass=MODELS.config_class(model_name))(function)
        if ARCHITECTURES.registered()[arch_name] is function:  # and not that of a plugin which took its name
            ARCHITECTURE_MODELS[arch_name] = model_name
        return function

    return add


def model_name_of(name: str) -> str:
    """The model behind ``name``, which is an architecture or a model. Raises as the registries do."""
    if name in ARCHITECTURE_MODELS:
        return ARCHITECTURE_MODELS[name]
    if name in MODELS:
        return name
    ARCHITECTURES.get(name)  # raises with the nearest name, or with what is out of scope
    return name
