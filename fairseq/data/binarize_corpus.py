"""Text files to corpora on several processes, without torch: what ``fairseq-preprocess`` does with each file.

Every worker takes one byte range and writes one part; parts are then joined in order, so the result does not depend on
the number of workers. Memory stays flat: text, ids, sizes and positions all pass through in pieces. When the symbols
of raw text have yet to be counted, the first pass spools local ids to disk and the second maps them through a table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.binarize_lines import EOS, DictionaryWords, SymbolTable, TextFormat, encode_blocks
from fairseq.data.chunks import find_offsets
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import SymbolSource
from fairseq.data.mmap_index import best_fitting_int_dtype, write_index
from fairseq.data.tnt_index import write_tnt_index

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
