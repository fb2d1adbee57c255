"""Text files to corpora on several processes, without torch: what ``fairseq-preprocess`` does with each file.

Two kinds of `SymbolSource` stand for the lines: words looked up in a dictionary, and raw text through a subword
encoder. Either gives *local* ids with the string of each, so that a table maps a whole block of text to dictionary
ids at once.

Every worker takes one byte range and writes one part; parts are then joined in order, so the result does not depend
on the number of workers. Memory stays flat: text, ids, sizes and positions all pass through in pieces. When the
symbols of raw text have yet to be counted, the first pass spools local ids to disk and the second maps them through a
table.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import Ids, SymbolSource, build_bpe, symbol_source
from fairseq.data.index_formats import best_fitting_int_dtype, write_index, write_tnt_index
from fairseq.data.text import find_offsets, read_blocks
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


OnBytes = Callable[[int], None]
_SPOOL_TOKENS = 1 << 20
_PART_BYTES = 1 << 15  # a smaller part is not worth a process


@dataclass(frozen=True)
class Summary:
    """Lines, tokens (ends of lines included) and tokens that became unk."""

    num_seq: int = 0
    num_tok: int = 0
    num_replaced: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.num_seq + other.num_seq, self.num_tok + other.num_tok, self.num_replaced + other.num_replaced
        )

    @property
    def replaced_percent(self) -> float:
        return 100 * self.num_replaced / self.num_tok


@dataclass(frozen=True)
class Output:
    """The type of the tokens: mmap in the smallest type for the vocabulary, or TNTIDX (int32, plus one)."""

    dtype: np.dtype[Any]
    lua: bool

    @classmethod
    def of(cls, impl: str, vocab_size: int) -> Output:
        lua = impl in ("lazy", "cached")
        return cls(np.dtype(np.int32 if lua else best_fitting_int_dtype(vocab_size)), lua)

    def finish(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return ids + 1 if self.lua else ids


@dataclass(frozen=True)
class Part:
    """One worker's byte range of ``path``, and the prefix of what it writes (``.bin`` and ``.sizes``)."""

    path: str
    start: int
    stop: int
    prefix: str


@dataclass(frozen=True)
class SpooledPart:
    """A part whose ``.bin`` holds shifted local ids of ``symbols``, seen ``counts`` times."""

    part: Part
    symbols: list[str]
    counts: npt.NDArray[np.int64]
    num_seq: int


def _encode_part(
    source: SymbolSource | None,
    on_bytes: OnBytes,
    part: Part,
    text_format: TextFormat,
    dictionary: Dictionary,
    output: Output,
) -> Summary:
    source = source or text_format.source(dictionary)
    table = SymbolTable(dictionary)
    summary = Summary()
    with open(part.prefix + ".bin", "wb") as tokens, open(part.prefix + ".sizes", "wb") as lengths:
        for shifted, sizes in encode_blocks(part.path, part.start, part.stop, text_format, source, on_bytes):
            table.extend(source.symbols)
            tokens.write(output.finish(table.map(shifted, output.dtype)).tobytes())
            lengths.write(sizes.astype(np.int32).tobytes())
            replaced = 0 if isinstance(source, DictionaryWords) else table.count_replaced(shifted)
            summary += Summary(len(sizes), len(shifted), replaced)
    if isinstance(source, DictionaryWords):
        summary += Summary(num_replaced=source.lookup.replaced)
    return summary


def _spool_part(
    source: SymbolSource | None, on_bytes: OnBytes, part: Part, text_format: TextFormat, dictionary: Dictionary
) -> SpooledPart:
    source = source or text_format.source(dictionary)
    counts = np.zeros(1, dtype=np.int64)
    with open(part.prefix + ".bin", "wb") as tokens, open(part.prefix + ".sizes", "wb") as lengths:
        for shifted, sizes in encode_blocks(part.path, part.start, part.stop, text_format, source, on_bytes):
            tokens.write(shifted.tobytes())
            lengths.write(sizes.astype(np.int32).tobytes())
            block = np.bincount(shifted, minlength=len(counts))
            block[: len(counts)] += counts
            counts = block
    return SpooledPart(part, source.symbols[: len(counts) - 1], counts[1:], int(counts[EOS]))


def _map_part(
    source: SymbolSource | None, on_bytes: OnBytes, spooled: SpooledPart, dictionary: Dictionary, output: Output
) -> Summary:
    """Rewrite a spooled part with dictionary ids."""
    table = SymbolTable(dictionary)
    table.extend(spooled.symbols)
    local_ids, target = spooled.part.prefix + ".bin", spooled.part.prefix + ".ids"
    summary = Summary(num_seq=spooled.num_seq)
    with open(local_ids, "rb") as local, open(target, "wb") as tokens:
        while block := local.read(4 * _SPOOL_TOKENS):
            shifted = np.frombuffer(block, dtype=np.uint32)
            tokens.write(output.finish(table.map(shifted, output.dtype)).tobytes())
            summary += Summary(num_tok=len(shifted), num_replaced=table.count_replaced(shifted))
    os.replace(target, local_ids)
    return summary


class CorpusWriter:
    """Binarise files with ``workers`` processes; temporary files go to the directory ``scratch``.

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
        self._spools: dict[str, list[SpooledPart]] = {}
        self._files = 0
        # Built once: forked workers share it. Words need a new one for each dictionary and file.
        self._source = source if source or text_format.bpe is None else text_format.source(Dictionary())

    def spool(self, path: str, dictionary: Dictionary) -> None:
        """Encode ``path`` and add its symbols to ``dictionary``; `write` will then not encode it again."""
        if path in self._spools:
            spooled = self._spools[path]
        else:
            arguments = [(part, self.text_format, dictionary) for part in self._parts(path)]
            spooled = self._spools[path] = self._run(_spool_part, arguments, path)
        for part in spooled:
            for symbol, count in zip(part.symbols, part.counts.tolist(), strict=True):
                if count:
                    dictionary.add_symbol(symbol, count)
            dictionary.add_symbol(dictionary.eos_word, part.num_seq)

    def write(self, path: str, prefix: str, dictionary: Dictionary) -> Summary:
        """Binarise ``path`` into ``prefix.bin`` and ``prefix.idx``."""
        output = Output.of(self.impl, len(dictionary))
        summaries: list[Summary]
        if path in self._spools:
            spooled = self._spools.pop(path)
            parts = [item.part for item in spooled]
            summaries = self._run(_map_part, [(item, dictionary, output) for item in spooled], None)
        else:
            parts = self._parts(path)
            summaries = self._run(_encode_part, [(part, self.text_format, dictionary, output) for part in parts], path)
        _join([part.prefix + ".bin" for part in parts], prefix + ".bin")
        _join([part.prefix + ".sizes" for part in parts], prefix + ".sizes")
        sizes = np.fromfile(prefix + ".sizes", dtype=np.int32) if output.lua else _map_sizes(prefix + ".sizes")
        if output.lua:
            offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            write_tnt_index(prefix + ".idx", output.dtype, range(len(sizes) + 1), offsets, sizes)
        else:
            write_index(prefix + ".idx", sizes, output.dtype)
        os.remove(prefix + ".sizes")
        return sum(summaries, Summary())

    def _parts(self, path: str) -> list[Part]:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        offsets = find_offsets(path, max(1, min(self.workers, size // _PART_BYTES)))
        self._files += 1
        return [
            Part(path, start, stop, os.path.join(self.scratch, f"{self._files}.{i}"))
            for i, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False))
            if stop > start or i == 0
        ]

    def _run(self, job: Callable[..., Any], arguments: list[tuple[Any, ...]], path: str | None) -> list[Any]:
        """Results of ``job(source, on_bytes, *arguments)`` in order; ``path`` is whose bytes the progress counts."""
        bar = self._progress(path, os.path.getsize(path)) if self._progress and path else None
        try:
            if len(arguments) == 1:
                return [job(self._source, bar.update if bar else _ignore, *arguments[0])]
            return _run_parallel(job, arguments, self._source, bar)
        finally:
            if bar:
                bar.close()


def _ignore(count: int) -> None:
    return None


class _Worker:
    """State of a worker process: the encoder it inherits, and the bytes done by all (far below zero: stop)."""

    STOP = -(1 << 62)
    source: SymbolSource | None = None
    counter: Any = None

    @classmethod
    def adopt(cls, source: SymbolSource | None, counter: Any) -> None:
        cls.source, cls.counter = source, counter

    @classmethod
    def count(cls, count: int) -> None:
        with cls.counter.get_lock():
            cls.counter.value += count
            if cls.counter.value < 0:
                raise RuntimeError("stopped, because another worker failed")

    @classmethod
    def call(cls, job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return job(cls.source, cls.count, *arguments)


def _run_parallel(
    job: Callable[..., Any], arguments: list[tuple[Any, ...]], source: SymbolSource | None, bar: Any
) -> list[Any]:
    # Forked workers start at once, and have the encoder and the plugins that the parent has loaded.
    forks = "fork" in get_all_start_methods()
    context = get_context("fork" if forks else None)
    counter = context.Value("q", 0)
    inherited = (source if forks else None, counter)
    with ProcessPoolExecutor(len(arguments), context, initializer=_Worker.adopt, initargs=inherited) as pool:
        futures = [pool.submit(_Worker.call, job, item) for item in arguments]
        pending, shown = set(futures), 0
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
            failure = next((error for error in (future.exception() for future in done) if error is not None), None)
            if failure is not None:
                counter.value = _Worker.STOP
                raise failure
            if bar:
                now = counter.value
                bar.update(now - shown)
                shown = now
        return [future.result() for future in futures]


def _join(parts: list[str], target: str) -> None:
    """Append files to the first, which becomes ``target``; the others are removed."""
    os.replace(parts[0], target)
    if len(parts) > 1:
        with open(target, "ab") as whole:
            for part in parts[1:]:
                with open(part, "rb") as handle:
                    shutil.copyfileobj(handle, whole, 1 << 22)
                os.remove(part)


def _map_sizes(path: str) -> npt.NDArray[np.int32]:
    if os.path.getsize(path) == 0:
        return np.empty(0, dtype=np.int32)
    return np.memmap(path, dtype=np.int32, mode="r").view(np.ndarray)
