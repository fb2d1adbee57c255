"""What encoders share: building one from its settings, ids at array speed, the places of pieces in a text.

An encoder has ``encode(str) -> str`` (symbols joined by spaces), ``decode(str) -> str`` and, for whole-word masking,
``is_beginning_of_word(symbol) -> bool``.

`SymbolSource` turns lines into *local* ids at array speed: ``symbols[local_id]`` is the string that stands in a
dictionary, so a corpus is mapped to dictionary ids by one table look-up.

An encoder may offer ``encode_with_offsets(text) -> (symbols, spans)``: the symbols of its ``encode`` and, for each,
the characters [start, stop) it was made from, so that spans of pieces can be turned into spans of characters. For any
other encoder the decoded pieces are looked for one after the other.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fairseq.data.cached_path import cached_path
from fairseq.data.text import SPACE_NORMALIZER
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.file_io import NOT_FETCHED
from fairseq.registry import BPES, TOKENIZERS, Registry

LITERAL = frozenset(("<unk>", "<mask>"))  # symbols that decoding to ids keeps as text

Ids = npt.NDArray[np.integer[Any]]


class SymbolSource(Protocol):
    """Lines to local ids; ``symbols`` may grow from call to call, but never changes what it holds."""

    @property
    def symbols(self) -> list[str]: ...

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        """(ids of all lines one after the other, number of ids of each line)."""
        ...


class WordSource:
    """A `SymbolSource` over any function from a line to its symbols: each new symbol takes the next local id."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self._split = split
        self._index: defaultdict[str, int] = defaultdict()
        self._index.default_factory = self._index.__len__

    @property
    def symbols(self) -> list[str]:
        return list(self._index)

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return look_up(list(map(self._split, lines)), self._index)


def symbol_source(bpe: Any) -> SymbolSource:
    """The encoder itself when it has the numeric interface, else one around its ``encode``."""
    if hasattr(bpe, "encode_lines") and hasattr(bpe, "symbols"):
        return bpe
    return WordSource(lambda line: bpe.encode(line).split())


def look_up(rows: Sequence[Sequence[str]], index: Mapping[str, int]) -> tuple[Ids, Ids]:
    """Ids of the words of all rows as one array, and the lengths of the rows."""
    return _as_arrays(map(index.__getitem__, chain.from_iterable(rows)), rows)


def id_arrays(rows: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Lists of ids as one array, and their lengths."""
    return _as_arrays(chain.from_iterable(rows), rows)


def _as_arrays(ids: Iterable[int], rows: Sequence[Sequence[Any]]) -> tuple[Ids, Ids]:
    sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return np.fromiter(ids, dtype=np.uint32, count=int(sizes.sum())), sizes


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
    if value.startswith(NOT_FETCHED):
        raise ConfigError(
            f"the checkpoint names the address {value.removeprefix(NOT_FETCHED)} for its setting bpe.{key}; an address in a"
            f" file is not downloaded: if you trust it, download it and give the path with {flag} (in Python {key}=...)"
        )
    if "://" not in value and not os.path.exists(value):
        raise DataNotFoundError(f"file not found: {value} (setting bpe.{key}); give its path with {flag}")
    return cached_path(value, option=flag)


def build_bpe(cfg: Any, *args: Any) -> Any:
    """The encoder that ``cfg`` names: a configuration node with ``_name``, a plain name, a parsed Namespace with the
    attribute ``bpe``, or None (gives None). Something already built is returned as it is."""
    return _build(BPES, "bpe", cfg, *args)


def build_tokenizer(cfg: Any, *args: Any) -> Any:
    """Like `build_bpe`, for ``--tokenizer``."""
    return _build(TOKENIZERS, "tokenizer", cfg, *args)


def register_bpe(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator of plugins: ``--bpe name``; the class takes its settings as only argument."""
    return BPES.register(name, dataclass=dataclass)


def register_tokenizer(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator of plugins: ``--tokenizer name``."""
    return TOKENIZERS.register(name, dataclass=dataclass)


def _build(registry: Registry[Any], kind: str, cfg: Any, *args: Any) -> Any:
    if cfg is None or (callable(getattr(cfg, "encode", None)) and not isinstance(cfg, str)):
        return cfg
    chosen = getattr(cfg, kind, None)
    if isinstance(cfg, Namespace) and chosen is not None and not isinstance(chosen, str):
        return _build(registry, kind, chosen, *args)  # a Namespace of sections, as hub code passes
    return registry.build(cfg, kind, *args) if registry.chosen(cfg, kind) else None


Span = tuple[int, int]

_REACH = 64  # characters; a piece that is found farther ahead is taken for another occurrence of the same letters
_LINE_BREAKS = str.maketrans("\n\r\v\f\x85\u2028\u2029", "       ")


def encode_with_offsets(bpe: Any, text: str) -> tuple[list[str], list[Span]]:
    """The pieces of ``text`` as dictionary symbols, and the characters [start, stop) that each stands for.

    Spans leave out the whitespace around a piece; one of whitespace alone is empty. Pieces that are parts of one
    character (bytes of an emoji) all have its span. Ends of lines are encoded as spaces, because models are trained on
    single lines. Without an encoder (None) pieces are the words between whitespace.
    """
    line = text.translate(_LINE_BREAKS)
    if bpe is None:
        words = list(re.finditer(r"\S+", line))
        return [word.group() for word in words], [word.span() for word in words]
    if hasattr(bpe, "encode_with_offsets"):
        symbols, spans = bpe.encode_with_offsets(line)
    else:
        symbols = bpe.encode(line).split()
        spans = locate_pieces([bpe.decode(symbol) for symbol in symbols], line)
    return symbols, [trim(line, span) for span in spans]


def trim(text: str, span: Span) -> Span:
    """``span`` without the whitespace at its ends."""
    start, stop = span
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def locate_pieces(pieces: Sequence[str], text: str) -> list[Span]:
    """Look for decoded ``pieces`` in ``text``, from left to right; those not found (unknown) fill the gaps."""
    spans: list[Span] = []
    cursor = 0
    lost = 0  # pieces since the last one that was found
    for piece in map(str.strip, pieces):
        start = text.find(piece, cursor, cursor + _REACH + len(piece)) if piece else -1
        if start < 0:
            spans.append((cursor, cursor))
            lost += bool(lost or piece)
            continue
        if lost:
            spans[-lost:] = [(cursor, start)] * lost
        spans.append((start, start + len(piece)))
        cursor, lost = start + len(piece), 0
    if lost:
        spans[-lost:] = [(cursor, len(text))] * lost
    return spans


def byte_spans(sizes: Sequence[int], text: str) -> list[Span]:
    """Spans of pieces that hold ``sizes`` bytes each of the UTF-8 form of ``text``, one after the other."""
    if text.isascii():
        owner: Sequence[int] = range(len(text))
    else:
        owner = [i for i, char in enumerate(text) for _ in range(len(char.encode("utf-8")))]
    spans = []
    first = 0
    for size in sizes:
        last = first + size - 1
        spans.append((owner[first], owner[last] + 1))
        first = last + 1
    return spans


@TOKENIZERS.register("space")
class SpaceTokenizer:
    """Every run of whitespace becomes one space; decoding changes nothing."""

    def __init__(self, *unused: Any) -> None:
        pass

    def encode(self, x: str) -> str:
        return SPACE_NORMALIZER.sub(" ", x)

    def decode(self, x: str) -> str:
        return x
