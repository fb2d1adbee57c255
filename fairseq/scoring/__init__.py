"""Old path of the scorer registry. There are no built-in scorers: they judge generated text, which is out of scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq.registry import SCORERS


def register_scorer(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator: the scorer becomes known as ``name``."""
    return SCORERS.register(name, dataclass=dataclass)
