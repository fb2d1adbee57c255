"""References between the settings of a stored configuration, resolved without omegaconf's resolvers.

Configurations of 2020 hold strings such as ``${common.seed}``. Given to omegaconf, a string like ``${name:argument}`` would
call whatever resolver this process has registered under that name; a file must not be able to. So plain references are
looked up here, and every other expression is refused.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from fairseq.errors import CheckpointError

REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
MAX_DEPTH = 10  # references to references


def resolve_references(stored: Any, name: str) -> Any:
    """A copy of the configuration ``stored`` (dicts, lists, Namespaces) of file ``name`` without references.

    Raises CheckpointError for an expression that is no reference, or one that leads nowhere or in a circle.
    """
    return _Resolver(stored, name).copy(stored, "cfg", 0)


class _Resolver:
    def __init__(self, root: Any, name: str) -> None:
        self.root = root
        self.name = name

    def copy(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**self.copy(vars(value), where, depth))
        if isinstance(value, dict):
            return {key: self.copy(item, f"{where}.{key}", depth) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.copy(item, f"{where}[{i}]", depth) for i, item in enumerate(value))
        if isinstance(value, str) and "${" in value:
            match = REFERENCE.fullmatch(value)
            if match is None:
                raise self._error(where, value, "an expression that is not evaluated when loading")
            if depth >= MAX_DEPTH:
                raise self._error(where, value, "a reference that leads in a circle")
            return self.copy(self._look_up(match.group(1), where, value), where, depth + 1)
        return value

    def _look_up(self, path: str, where: str, value: str) -> Any:
        node = self.root
        for key in path.split("."):
            node = vars(node) if isinstance(node, argparse.Namespace) else node
            if not isinstance(node, dict) or key not in node:
                raise self._error(where, value, "a reference that leads nowhere")
            node = node[key]
        return node

    def _error(self, where: str, value: str, reason: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self.name} has {where} = {value!r}, {reason}")
