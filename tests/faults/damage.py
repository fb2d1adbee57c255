"""Ways to damage a file: its bytes, its lines, or the values that it holds."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[random.Random, bytes], bytes]


def of_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flipped bits, holes, cuts, repeated and foreign parts."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 4, 64, 1000)))
    part = data[start:stop]
    way = rng.randrange(10)
    if way <= 2 and part:  # what disks do
        return data[:start] + bytes([part[0] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if way == 3:
        return data[:start]
    if way == 4:
        return data[:start] + bytes(len(part)) + data[stop:]
    if way == 5:
        return data[:start] + data[stop:]
    if way == 6:
        return data[:start] + part * 2 + data[stop:]
    if way == 7:
        return data[:start] + rng.randbytes(len(part)) + data[stop:]
    if way == 8:
        return data[:start] + b"\xff" * 4 + data[start + 4 :]
    return rng.choice((b"", b"\x00" * len(data), data + data, data[::-1], b"PK\x03\x04" + data, data[1:]))


_ODD_TEXTS = (
    *("", " ", "\t", "\x00", "\ufeff", "\r", "\u2028", "-1", "0", "1e400", "nan", "99999999999999999999", "1.5"),
    *("x" * 5000, "[" * 3000, "{" * 3000, "<pad>", "<mask>", "[UNK]", "\U0001f600", "e\u0301", '"', "\\", "\\ud800"),
)


def of_lines(rng: random.Random, data: bytes) -> bytes:
    """Lines and fields that are missing, repeated, swapped or odd."""
    lines = data.split(b"\n")
    here, there = rng.randrange(len(lines)), rng.randrange(len(lines))
    odd = rng.choice(_ODD_TEXTS).encode()
    way = rng.randrange(8)
    if way == 0:
        del lines[here]
    elif way == 1:
        lines.insert(here, lines[there])
    elif way == 2:
        lines[here], lines[there] = lines[there], lines[here]
    elif way == 3:
        lines.insert(here, odd)
    elif way == 4:
        lines[here] += odd
    elif way == 5:
        lines[here] = rng.choice((b"\xff\xfe", b"\xed\xa0\x80", lines[here] + b"\r", lines[here].upper()))
    else:
        separator = b"\t" if b"\t" in lines[here] else b" "
        fields = lines[here].split(separator)
        fields[rng.randrange(len(fields))] = odd
        lines[here] = separator.join(fields)
    return b"\n".join(lines)


_DEEP = "nested"


def odd_value(rng: random.Random) -> Any:
    deep: Any = []
    for _ in range(rng.choice((50, 150))):
        deep = [deep]
    return rng.choice(
        [
            *(None, 5, -1, 0, 0.5, math.inf, math.nan, 10**9, 10**30, True, "x", "", "\ud800", "\x00", "${a.b}"),
            *([], [1], [{}], [[1]], {}, {"a": 1}, {"a": {}}, deep, "x" * 5000, "???", "1e9", _DEEP),
        ]
    )


def of_value(rng: random.Random, value: Any) -> Any:
    """A copy of the nested ``value`` in which one place holds something odd, or is missing, or has another name."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return odd_value(rng)
    # Every depth alike: most places are deep inside.
    depth = rng.choice(sorted({depth for depth, _, _ in places}))
    _, container, key = rng.choice([place for place in places if place[0] == depth])
    way = rng.randrange(6)
    if way == 0:
        del container[key]
    elif way == 1 and isinstance(container, dict):
        container[rng.choice((f"{key}x", "", 7))] = container.pop(key)
    else:
        container[key] = odd_value(rng)
    return value


def _places(value: Any, depth: int = 0) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield depth, value, key
        yield from _places(item, depth + 1)


def of_json(rng: random.Random, data: bytes) -> bytes:
    """Values of JSON, or of one of its lines."""
    lines = data.decode().splitlines()
    whole = len(lines) < 2 or not lines[0].endswith("}")
    number = 0 if whole else rng.randrange(len(lines))
    text = json.dumps(of_value(rng, json.loads(data if whole else lines[number])))
    text = text.replace(f'"{_DEEP}"', "[" * 5000 + "]" * 5000)  # more than Python's own module can write
    return (text if whole else "\n".join([*lines[:number], text, *lines[number + 1 :]])).encode()


def any_of(*ways: Damage) -> Damage:
    return lambda rng, data: rng.choice(ways)(rng, data)


def damaged(way: Damage, rng: random.Random, data: bytes) -> bytes:
    """``data`` changed by ``way``, for certain."""
    for _ in range(100):
        changed = way(rng, data)
        if changed != data:
            return changed
    raise AssertionError("the damage changes nothing")
