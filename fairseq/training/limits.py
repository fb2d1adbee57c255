"""The longest sample that task, model and batch size allow together."""

from __future__ import annotations

from collections.abc import Iterable

Limit = int | float | tuple | list | dict | None


def resolve_max_positions(*limits: Limit) -> Limit:
    """The element-wise minimum of ``limits`` (tokens); None means no limit.

    A limit is a number, a tuple of numbers (one an input) or a dict of them (one a data set); a number meets every
    element of a tuple or dict.
    """
    result: Limit = None
    for limit in limits:
        if limit is None:
            continue
        result = limit if result is None else _smaller(result, limit)
    return result


def _smaller(a: Limit, b: Limit) -> Limit:
    if isinstance(a, dict) or isinstance(b, dict):
        (table, other) = (a, b) if isinstance(a, dict) else (b, a)
        assert isinstance(table, dict)
        return {
            key: value
            if isinstance(other, dict) and key not in other
            else _smaller(value, other[key] if isinstance(other, dict) else other)
            for key, value in table.items()
        }
    if isinstance(a, Iterable) and isinstance(b, Iterable):
        return tuple(_least(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Iterable):
        return tuple(_least(x, b) for x in a)
    if isinstance(b, Iterable):
        return tuple(_least(a, y) for y in b)
    return _least(a, b)


def _least(a: Limit, b: Limit) -> Limit:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)  # type: ignore[type-var]
