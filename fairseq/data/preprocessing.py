"""Text files to corpora on several processes, without torch: what ``fairseq-preprocess`` does with each file.

A `SymbolSource`, of words or of a subword encoder, gives *local* ids with the string of each, so that a table maps a
whole chunk of text to dictionary ids at once.

Workers take the chunks of a file, and their results are written in the order of the chunks, so the files do not depend
on the number of workers. Memory stays flat. When the symbols of raw text have yet to be counted, the first pass spools
local ids to disk and the second maps them through a table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import Ids, SymbolSource, build_bpe, look_up, symbol_source
from fairseq.data.index_formats import best_fitting_int_dtype, map_tokens, write_index, write_tnt_index
from fairseq.data.pool import map_in_order
from fairseq.data.text import ByteRange, LoneReturns, chunk_ranges, json_value, read_blocks
from fairseq.errors import DataError

EOS = 0  # the shifted local id that stands for the end of a line; symbol i is i + 1


@dataclass(frozen=True)
class TextFormat:
    """How the lines of the input are to be read.

    ``bpe``: settings of a subword encoder (picklable), None for text whose words are the symbols. ``jsonlines``: each
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
    reason = ""
    try:
        text = json_value(line)["text"]
    except json.JSONDecodeError:
        text = None
    except ValueError as error:
        text, reason = None, f" ({error})"
    except (KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise DataError(
            f"{path}: expected a JSON object with a string field 'text' on each line, but found {line[:80]!r}{reason}"
        )
    return text


class _Lookup(dict[str, int]):
    """Symbol -> id; the next id for all unknown ones."""

    def __missing__(self, word: str) -> int:
        return len(self)


class DictionaryWords:
    """Words between whitespace; all that ``dictionary`` lacks are one symbol, the empty one."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.symbols = [*dictionary.indices, ""]
        self._lookup = _Lookup({word: i for i, word in enumerate(dictionary.indices)})

    def encode_lines(self, lines: Sequence[str]) -> tuple[Ids, Ids]:
        return look_up(list(map(str.split, lines)), self._lookup)


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


@dataclass(frozen=True)
class Summary:
    """Lines, tokens (ends of lines included), tokens that became unk, and lines that end with a lone ``\\r``."""

    num_seq: int = 0
    num_tok: int = 0
    num_replaced: int = 0
    lone_returns: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def replaced_percent(self) -> float:
        return 100 * self.num_replaced / self.num_tok


def encode(lines: list[str], source: SymbolSource) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """(local ids + 1 with `EOS` after each line, tokens of each line with its end)."""
    ids, sizes = source.encode_lines(lines)
    sizes = sizes + 1
    ends = np.cumsum(sizes) - 1
    shifted = np.empty(len(ids) + len(sizes), dtype=np.uint32)
    inside = np.ones(len(shifted), dtype=bool)
    inside[ends] = False
    shifted[inside] = ids
    shifted += np.uint32(1)
    shifted[ends] = EOS
    return shifted, sizes.astype(np.int32)


class Target:
    """Shifted local ids to those of ``dictionary``, as they stand on disk.

    These are the smallest type for the vocabulary (mmap), or int32 plus one (TNTIDX, ``lua``).
    """

    def __init__(self, dictionary: Dictionary, lua: bool) -> None:
        self.dictionary, self.lua = dictionary, lua
        self.dtype = np.dtype(np.int32 if lua else best_fitting_int_dtype(len(dictionary)))
        self._ids = np.array([dictionary.eos() + lua], dtype=self.dtype)
        self._is_replaced = np.array([False])

    def learn(self, symbols: list[str]) -> None:
        """Take in the symbols that are new since the last call."""
        new = symbols[len(self._ids) - 1 :]
        if not new:
            return
        ids = np.array([self.dictionary.index(symbol) for symbol in new], dtype=np.int64)
        is_unk_word = np.array([symbol == self.dictionary.unk_word for symbol in new])
        self._ids = np.concatenate([self._ids, (ids + self.lua).astype(self.dtype)])
        self._is_replaced = np.concatenate([self._is_replaced, (ids == self.dictionary.unk()) & ~is_unk_word])

    def map(self, shifted: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[Any], int]:
        """(ids, how many become unk without being the unk word)."""
        return self._ids[shifted], int(np.count_nonzero(self._is_replaced[shifted]))

    def write_index(self, prefix: str) -> None:
        """Turn ``prefix.sizes`` into ``prefix.idx``."""
        sizes = map_tokens(prefix + ".sizes", np.int32)
        if self.lua:
            offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            write_tnt_index(prefix + ".idx", self.dtype, range(len(sizes) + 1), offsets, sizes)
        else:
            write_index(prefix + ".idx", sizes, self.dtype)
        os.remove(prefix + ".sizes")


# Of a chunk: ids, tokens of each line, and a `Summary`, or, of local ids, `Symbols`.
Result = tuple[npt.NDArray[Any], npt.NDArray[np.int32], Any]


@dataclass(frozen=True)
class Symbols:
    """The symbols that local ids stand for, with their counts, and the lines that end with a lone ``\\r``."""

    counts: list[tuple[str, int]]
    lone_returns: int


class _Work:
    """What a worker does with a chunk of ``path``. Without a ``target`` ids stay local."""

    def __init__(self, path: str, text_format: TextFormat, source: SymbolSource | None, target: Target | None) -> None:
        self._path, self._format, self._source, self._target = path, text_format, source, target

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}  # where processes do not fork, each builds its own encoder

    def __call__(self, chunk: ByteRange) -> Result:
        if self._source is None:
            self._source = self._format.source(self._target.dictionary if self._target else Dictionary())
        returns = LoneReturns()
        lines = [line for block in read_blocks(self._path, *chunk, returns) for line in block]
        if self._format.bpe is not None:
            lines = [self._format.prepare(line, self._path) for line in lines]
        try:
            shifted, sizes = encode(lines, self._source)
        except DataError as error:
            raise DataError(f"{self._path}: {error}") from None
        if self._target is None:
            ids, counts = _only_used(shifted, self._source.symbols)
            return ids, sizes, Symbols(counts, returns.count)
        self._target.learn(self._source.symbols)
        ids, replaced = self._target.map(shifted)
        return ids, sizes, Summary(len(sizes), len(ids), replaced, returns.count)


def _only_used(shifted: npt.NDArray[np.uint32], symbols: list[str]) -> tuple[npt.NDArray[Any], list[tuple[str, int]]]:
    """(ids into the symbols that occur, shifted as well; those symbols with their counts)."""
    counts = np.bincount(shifted, minlength=1)
    counts[EOS] = 0
    used = np.flatnonzero(counts)
    place = np.zeros(len(counts), dtype=np.uint32)
    place[used] = np.arange(1, len(used) + 1)
    return place[shifted], [(symbols[i - 1], count) for i, count in zip(used, counts[used].tolist(), strict=True)]


class _Spool:
    """A file that is encoded already: its chunks on disk, as shifted ids into ``symbols``."""

    def __init__(self, path: str) -> None:
        self._path, self.lines, self.lone_returns = path, 0, 0
        self.symbols = Dictionary(add_special_symbols=False)

    def fill(self, chunks: Iterable[Result]) -> None:
        with open(self._path, "wb") as handle:
            for shifted, sizes, found in chunks:
                place = [EOS, *(1 + self.symbols.add_symbol(symbol, count) for symbol, count in found.counts)]
                np.save(handle, np.array(place, dtype=np.uint32)[shifted])
                np.save(handle, sizes)
                self.lines += len(sizes)
                self.lone_returns += found.lone_returns

    def read(self, target: Target) -> Iterator[Result]:
        """What the workers would give for ``target``."""
        target.learn(self.symbols.symbols)
        done = 0
        with open(self._path, "rb") as handle:
            while done < self.lines:
                shifted, sizes = np.load(handle), np.load(handle)
                ids, replaced = target.map(shifted)
                yield ids, sizes, Summary(len(sizes), len(ids), replaced)
                done += len(sizes)


class CorpusWriter:
    """Binarize files with ``workers`` processes; temporary files go to the directory ``scratch``.

    ``progress(path, size)`` makes an object with ``update(bytes)`` and ``close()``, such as a tqdm bar. ``source`` is the
    encoder that ``text_format`` describes, when it is built already.
    """

    def __init__(
        self,
        text_format: TextFormat,
        workers: int,
        scratch: str,
        impl: str = "mmap",
        progress: Callable[[str, int], Any] | None = None,
        source: SymbolSource | None = None,
    ) -> None:
        self.text_format, self.workers, self.scratch, self.impl = text_format, max(1, workers), scratch, impl
        self._progress = progress
        self._spools: dict[str, _Spool] = {}
        # Built once: forked workers share it. Words need a new one for each dictionary and file.
        self.source = source if source or text_format.bpe is None else text_format.source(Dictionary())

    def spool(self, path: str, dictionary: Dictionary) -> None:
        """Encode ``path`` and add its symbols to ``dictionary``; `write` will then not encode it again."""
        spool = self._spools.get(path)
        if spool is None:
            spool = self._spools[path] = _Spool(os.path.join(self.scratch, f"spool{len(self._spools)}"))
            spool.fill(self._map(path, None))
        dictionary.update(spool.symbols)
        dictionary.add_symbol(dictionary.eos_word, spool.lines)

    def write(self, path: str, prefix: str, dictionary: Dictionary) -> Summary:
        """Binarize ``path`` into ``prefix.bin`` and ``prefix.idx``."""
        target = Target(dictionary, self.impl in ("lazy", "cached"))
        spool = self._spools.get(path)
        total = Summary(lone_returns=spool.lone_returns if spool else 0)
        with open(prefix + ".bin", "wb") as tokens, open(prefix + ".sizes", "wb") as lengths:
            for ids, sizes, summary in spool.read(target) if spool else self._map(path, target):
                tokens.write(ids.data)
                lengths.write(sizes.data)
                total += summary
        target.write_index(prefix)
        return total

    def _map(self, path: str, target: Target | None) -> Iterator[Result]:
        """The result of each chunk of ``path``, in order."""
        chunks = chunk_ranges(path, self.workers)
        bar = self._progress(path, os.path.getsize(path)) if self._progress else None
        work = _Work(path, self.text_format, self.source, target)
        try:
            for (start, stop), result in zip(chunks, map_in_order(work, chunks, self.workers), strict=True):
                yield result
                if bar:
                    bar.update(stop - start)
        finally:
            if bar:
                bar.close()
