"""How much a small file may ask for: nested values, references, memory.

A pickle and a YAML file can name one value many times: forty lists of two, each holding the one before twice, are a
million million values when they are written out. Here they are counted without writing them out.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fairseq.errors import ConfigError

MAX_DEPTH = 100
MAX_REPEATED = 100_000  # values beyond those that are really there
EXPECTED_RATIO = 4
ALWAYS_ALLOWED = 1 << 29  # bytes
MAX_TEXT = 1_000_000  # characters of all texts with their references written out
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?(\.*)(\w[\w.\[\]]*)")


def excess(value: Any) -> str | None:
    """What is wrong with the nested ``value``, as the end of a sentence about it; None for an ordinary one."""
    walk = _Walk()
    try:
        size, _ = walk.measure(value, 0)
    except _Refused as refused:
        return str(refused)
    if size > 2 * walk.there + MAX_REPEATED:
        return f"values that repeat each other: written out they would be {size:.0e}"
    return None


def read_yaml(path: Path) -> Any:
    """The value in the YAML file ``path``. Raises ConfigError for what is no YAML, or repeats itself by its anchors."""
    import yaml  # not above: checkpoints do without

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path} holds values that are nested too deep") from None
    except (OSError, ValueError) as error:  # an impossible date
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    wrong = excess(content)
    if wrong is not None:
        raise ConfigError(f"{path} holds {wrong}")
    return content


class _Refused(Exception):
    """The argument is what `excess` returns."""


class _Walk:
    """One walk over a nested value; containers that are shared are measured once."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int]] = {}  # id of a container -> (values written out, height)
        self.open: set[int] = set()
        self.there = 0

    def measure(self, value: Any, depth: int) -> tuple[int, int]:
        key = id(value)
        if key in self.known:
            return self.known[key]
        if key in self.open:
            raise _Refused("a value that contains itself")
        self.there += 1
        children = _children(value)
        if children is None:
            return 1, 0
        self.open.add(key)
        found = [self.measure(child, depth + 1) for child in children] if depth < MAX_DEPTH else [(1, MAX_DEPTH)]
        size, height = 1 + sum(size for size, _ in found), 1 + max((height for _, height in found), default=0)
        if height > MAX_DEPTH:
            raise _Refused(f"values nested more than {MAX_DEPTH} deep")
        self.open.discard(key)
        self.known[key] = size, height
        return size, height


def _children(value: Any) -> Iterable[Any] | None:
    """What the container ``value`` holds; None for a value that is no container."""
    if isinstance(value, argparse.Namespace):
        return vars(value).values()
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, (list, tuple, set, frozenset)) else None


def reference_excess(tree: Any) -> str | None:
    """As `excess`, of settings whose texts refer to other settings: ``${a}${a}``, where a is ``${b}${b}``, and so on."""
    references = _References(tree)
    try:
        size = references.measure(tree, (), 0)
    except _Refused as refused:
        return str(refused)
    if size > 2 * references.there + MAX_TEXT:
        return f"references to references: written out they would be {size:.0e} characters"
    return None


class _References:
    """Lengths of the values in a tree of settings, references written out. What leads nowhere or in a circle counts 0."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.known: dict[tuple[Any, ...], int] = {}
        self.open: set[tuple[Any, ...]] = set()
        self.there = 0

    def measure(self, value: Any, path: tuple[Any, ...], depth: int) -> int:
        if depth > MAX_DEPTH:
            raise _Refused(f"references followed by more than {MAX_DEPTH} others")
        if path in self.known:
            return self.known[path]
        if path in self.open:
            return 0
        self.open.add(path)
        self.known[path] = size = self._measure(value, path, depth + 1)
        self.open.discard(path)
        return size

    def _measure(self, value: Any, path: tuple[Any, ...], depth: int) -> int:
        if isinstance(value, Mapping):
            return 1 + sum(self.measure(item, (*path, key), depth) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return 1 + sum(self.measure(item, (*path, number), depth) for number, item in enumerate(value))
        if not isinstance(value, str):
            return 1
        self.there += len(value)
        size = len(value)
        for dots, name in _REFERENCE.findall(value):
            target = (*path[: len(path) - len(dots)], *_keys(name)) if dots else _keys(name)
            size += self.measure(_find(self.root, target), target, depth)
        return size


def _keys(name: str) -> tuple[Any, ...]:
    """``a.b[0]`` as ``("a", "b", 0)``."""
    parts = re.split(r"[.\[\]]+", name.rstrip(".]"))
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _find(root: Any, path: Sequence[Any]) -> Any:
    for key in path:
        if isinstance(root, Mapping):
            root = root.get(key)
        elif isinstance(root, (list, tuple)) and isinstance(key, int) and key < len(root):
            root = root[key]
        else:
            return None
    return root


def memory_there() -> int | None:
    """Bytes that this process can still get, without those that another one has; None where the system does not say."""
    found = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(sum(1024 * int(lines[key].split()[0]) for key in ("MemAvailable", "SwapFree")))
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)  # type: ignore[type-var]


_expected: ContextVar[tuple[int, str] | None] = ContextVar("expected", default=None)


@contextlib.contextmanager
def expecting(size: int, where: str) -> Iterator[None]:
    """Within the block nothing needs many times the ``size`` bytes that ``where`` ("the weights in model.pt") has."""
    token = _expected.set((size, where))
    try:
        yield
    finally:
        _expected.reset(token)


def too_large(need: int) -> str | None:
    """``need`` bytes in words, where they are more than there are, or many times what is expected; None otherwise."""
    expected = _expected.get()
    if expected is not None and need > EXPECTED_RATIO * expected[0] + ALWAYS_ALLOWED:
        return f"about {_gigabytes(need)} of memory, but {expected[1]} have {_gigabytes(expected[0])}"
    there = memory_there()
    if there is None or need <= there:
        return None
    return f"about {_gigabytes(need)} of memory, but there are {_gigabytes(there)}"


def too_many_files(need: int) -> str | None:
    """``need`` open files in words, where this process may not have so many; None otherwise."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY or need <= allowed:
        return None
    return f"about {need} open files, but this process may have {allowed} (ulimit -n)"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
