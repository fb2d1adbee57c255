"""What encoders share: their settings' files, and the numeric interface that preprocessing uses.

`SymbolSource` turns lines into *local* ids at array speed: ``symbols[local_id]`` is the string that stands in a
dictionary, so a corpus is mapped to dictionary ids by one table look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fairseq.data.cached_path import cached_path
from fairseq.errors import ConfigError

LITERAL = frozenset(("<unk>", "<mask>"))  # symbols that decoding to ids keeps as text

Ids = npt.NDArray[np.integer[Any]]


class SymbolSource(Protocol):
    """Lines to local ids; ``symbols`` may grow from call to call, but never changes what it holds."""

    symbols: list[str]

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        """(ids of all lines one after the other, number of ids of each line)."""
        ...


class WordSource:
    """A `SymbolSource` over any function from a line to its symbols: each new symbol takes the next local id."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.symbols: list[str] = []
        self._split = split
        self._index: dict[str, int] = {}

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return flatten([self.local_ids(self._split(line)) for line in lines])

    def local_ids(self, words: list[str]) -> list[int]:
        index = self._index
        for word in words:
            if word not in index:
                index[word] = len(self.symbols)
                self.symbols.append(word)
        return [index[word] for word in words]


def symbol_source(bpe: Any) -> SymbolSource:
    """The encoder itself when it has the numeric interface, else one around its ``encode``."""
    if hasattr(bpe, "encode_lines") and hasattr(bpe, "symbols"):
        return bpe
    return WordSource(lambda line: bpe.encode(line).split())


def flatten(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Lists of ids as one array, and their lengths."""
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    total = int(sizes.sum())
    return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=total), sizes


def required_file(cfg: Any, key: str, bpe: str) -> str:
    """Local path of the file that the setting ``key`` names. Raises ConfigError when it is not given."""
    try:
        value = getattr(cfg, key, None)
    except Exception as error:  # omegaconf raises its own classes for a mandatory value that is missing
        if type(error).__name__ != "MissingMandatoryValue":
            raise
        value = None
    flag = "--" + key.replace("_", "-")
    if not value or value == "???":
        raise ConfigError(f"--bpe {bpe} needs {flag} (setting bpe.{key}): the path of its file")
    return cached_path(value, option=flag)
