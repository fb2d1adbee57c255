"""What subclasses changed: how quicker ways step aside for methods that a plugin overrides.

Plugins override methods of classes that have since learned more, or that are nowadays passed by on the way to a result. The
rule: a method that the original called is called here too wherever somebody overrides it, and the quick way is taken where
nobody does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def supports(part: object, ability: str, *methods: str) -> bool:
    """Whether the class attribute (or method) ``ability`` of ``part`` holds for its ``methods``.

    The rule for all abilities: they are said of a method, in the very class that defines it. A subclass that overrides
    the method without saying so again is treated as if it could do nothing.
    """
    for method in methods:
        owner = next((kind for kind in type(part).__mro__ if method in vars(kind)), object)
        if method in vars(part) or not vars(owner).get(ability, False):
            return False
    return True


def overridden(part: object, base: type, *names: str) -> bool:
    """Whether ``part`` has another method or property than ``base`` for one of ``names``."""
    for name in names:
        own = getattr(base, name, None)
        if name in vars(part) or getattr(type(part), name, own) is not own:
            return True
    return False


def keeps_up(part: object, quick: str, plain: str) -> bool:
    """Whether ``part`` has a method ``quick`` that may stand for ``plain``: no subclass has overridden only the latter."""
    kinds = type(part).__mro__
    places = [
        next((place for place, kind in enumerate(kinds) if name in vars(kind)), len(kinds)) for name in (quick, plain)
    ]
    return plain not in vars(part) and places[0] <= places[1]


def hooked(module: Any) -> bool:
    """Whether somebody sees, or changes, what ``module`` is given or gives; torch's sharding, which does neither, apart."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not getattr(hook, "__module__", "").startswith("torch.distributed.fsdp") for hook in hooks)


def inherited(kind: type, name: str) -> Any:
    """The class attribute ``name`` of ``kind`` or, where that is None, of the nearest class above that has one."""
    return next((vars(owner)[name] for owner in kind.__mro__ if vars(owner).get(name) is not None), None)


def binds(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether ``function`` can be called with ``arguments``."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether ``function`` takes an argument called ``name``."""
    names, takes_any = _parameters(getattr(function, "__func__", function))
    return takes_any or name in names


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Their names, and whether there is a ``**`` for others; asked in every pass of a model."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return frozenset(parameters), takes_any
