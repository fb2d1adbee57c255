"""What a part of a model says of itself, as far as it can be trusted."""

from __future__ import annotations


def declares(part: object, name: str, *methods: str) -> bool:
    """Whether the class attribute ``name`` of ``part`` is true of its ``methods``.

    It has to stand in the very class that defines the method: a subclass that defines it again, without saying so, knows
    nothing of what its parent can do.
    """
    for method in methods:
        owner = next(kind for kind in type(part).__mro__ if method in vars(kind))
        if method in vars(part) or not vars(owner).get(name, False):
            return False
    return True
