"""Lines of text to arrays of symbol ids: the inner loop of preprocessing, without torch.

Two kinds of `SymbolSource`: words looked up in a dictionary, and raw text through a sub-word encoder. Either gives
*local* ids with the string of each, so that a table maps a whole block of text to dictionary ids at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.chunks import read_blocks
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import Ids, SymbolSource, symbol_source
from fairseq.data.encoders.build import build_bpe
from fairseq.errors import DataError

EOS = 0  # the shifted local id that stands for the end of a line; symbol i is i + 1


@dataclass(frozen=True)
class TextFormat:
    """How the lines of the input are to be read.

    ``bpe``: settings of a sub-word encoder (picklable), None for text whose words are the symbols. ``jsonlines``: each
    line is a JSON object and its field ``text`` is encoded as it is; other raw lines lose the whitespace at both ends.
    """

    bpe: Any = None
    jsonlines: bool = False

    def source(self, dictionary: Dictionary) -> SymbolSource:
        return DictionaryWords(dictionary) if self.bpe is None else symbol_source(build_bpe(self.bpe))

    def prepare(self, line: str, path: str) -> str:
        """The text of one raw line; a blank line is the empty text."""
        text = line.strip()
        return json_text(text, path) if self.jsonlines and text else text


def json_text(line: str, path: str) -> str:
    """The field ``text`` of a line of JSON. Raises DataError when there is none."""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise DataError(
            f"{path}: expected a JSON object with a string field 'text' on each line, but found {line[:80]!r}"
        )
    return text


class _Lookup(dict[str, int]):
    """Symbol -> id; unknown ones are unk and counted."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__(dictionary.indices)
        self._unk = dictionary.unk()
        self.replaced = 0

    def __missing__(self, word: str) -> int:
        self.replaced += 1
        return self._unk


class DictionaryWords:
    """Whitespace-separated words, whose local ids are those of the dictionary."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.symbols = dictionary.symbols
        self.lookup = _Lookup(dictionary)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        words = list(map(str.split, lines))
        sizes = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        ids = map(self.lookup.__getitem__, chain.from_iterable(words))
        return np.fromiter(ids, dtype=np.uint32, count=int(sizes.sum())), sizes


def encode_blocks(
    path: str,
    start: int,
    stop: int,
    text_format: TextFormat,
    source: SymbolSource,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[tuple[npt.NDArray[np.uint32], Ids]]:
    """(shifted local ids with `EOS` after each line, tokens of each line with eos) of about a megabyte of text each."""
    for lines in read_blocks(path, start, stop, on_bytes):
        if text_format.bpe is not None:
            lines = [text_format.prepare(line, path) for line in lines]
        ids, sizes = source.encode_lines(lines)
        sizes = sizes + 1
        ends = np.cumsum(sizes) - 1
        shifted = np.empty(len(ids) + len(sizes), dtype=np.uint32)
        inside = np.ones(len(shifted), dtype=bool)
        inside[ends] = False
        shifted[inside] = ids
        shifted += np.uint32(1)
        shifted[ends] = EOS
        yield shifted, sizes


class SymbolTable:
    """Shifted local ids to dictionary ids for a source whose symbols may grow."""

    def __init__(self, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        self._ids = np.array([dictionary.eos()], dtype=np.int64)
        self._is_replaced = np.array([False])

    def extend(self, symbols: list[str]) -> None:
        """Learn the symbols that are new since the last call."""
        new = symbols[len(self._ids) - 1 :]
        if not new:
            return
        dictionary = self._dictionary
        ids = np.array([dictionary.index(symbol) for symbol in new], dtype=np.int64)
        is_unk_word = np.array([symbol == dictionary.unk_word for symbol in new])
        self._ids = np.concatenate([self._ids, ids])
        self._is_replaced = np.concatenate([self._is_replaced, (ids == dictionary.unk()) & ~is_unk_word])

    def map(self, shifted: npt.NDArray[np.uint32], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return self._ids.astype(dtype)[shifted]

    def count_replaced(self, shifted: npt.NDArray[np.uint32]) -> int:
        """Tokens that become unk without being the unk word."""
        return int(np.count_nonzero(self._is_replaced[shifted])) if self._is_replaced.any() else 0


_PROBE_LINES = 200


def looks_encoded(path: str, text_format: TextFormat) -> str | None:
    """What the first lines of ``path`` consist of when that is not raw text: ids or sentence pieces; else None."""
    words: list[str] = []
    for lines in read_blocks(path):
        for line in [line for line in lines if line.strip()][:_PROBE_LINES]:
            words.extend(text_format.prepare(line, path).split())
        break
    if len(words) >= 8:
        if sum(word.isascii() and word.isdigit() for word in words) >= 0.95 * len(words):
            return "numbers"
        if sum(word.startswith("\u2581") for word in words) >= 0.3 * len(words):
            return "sentence pieces"
    return None
