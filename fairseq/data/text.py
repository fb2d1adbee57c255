r"""Small text rules (tokenizing a line, undoing subwords), and cutting a text file for several processes.

Lines end as in Python's universal newlines: ``\n``, ``\r\n`` or a lone ``\r``. Cutting works on bytes: a line end is
one byte in UTF-8 and never part of another character, so no position can fall inside a character.
"""

from __future__ import annotations

import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, BinaryIO, NoReturn

from fairseq.errors import DataError, DataNotFoundError

SPACE_NORMALIZER = re.compile(r"\s+")
LONGEST_LINE = 1 << 26  # bytes


def refuse_long_line(filename: str | os.PathLike[str]) -> NoReturn:
    raise DataError(
        f"{filename} has a line of more than {LONGEST_LINE:,} bytes, the most that is read; divide it into lines"
    )


_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def json_value(text: str) -> Any:
    """The value of a JSON text. Raises ValueError: not JSON, nested too deep, or half of a surrogate pair in a string."""
    try:
        value = json.loads(text)
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"it has half of a surrogate pair, {half}, which is no character") from None
    return value


def tokenize_line(line: str) -> list[str]:
    """Words of ``line``: any run of Unicode whitespace separates, none is kept."""
    return line.split()


# symbol -> (deleted or replaced marker); each of them deletes all spaces, then turns the marker into a space.
_JOINERS = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}


def post_process(sentence: str, symbol: str | None) -> str:
    """Undo the subword split named ``symbol`` (``--post-process``); None and ``none`` do nothing."""
    if symbol is None or symbol == "none":
        return sentence
    if symbol in _JOINERS:
        return sentence.replace(" ", "").replace(_JOINERS[symbol], " ").strip()
    if symbol == "silence":
        return re.sub(" +", " ", sentence.replace("<SIL>", "")).strip()
    if symbol in ("subword_nmt", "@@ ", "@@"):
        marker = "@@ " if symbol == "subword_nmt" else symbol
        return (sentence + " ").replace(marker, "").rstrip()
    raise NotImplementedError(f"unknown post-processing {symbol!r}; known: {', '.join([*_JOINERS, 'silence', '@@ '])}")


BLOCK_BYTES = 1 << 20
LEAST_BYTES = 1 << 15  # less is not worth a process
_LINE_END = re.compile(rb"\r\n|\r|\n")


def find_offsets(filename: str | os.PathLike[str], num_chunks: int) -> list[int]:
    """``num_chunks + 1`` byte offsets, each at a line start or the end of the file.

    Inner offset ``i`` is the end of the line that holds byte ``i * (size // num_chunks)``; several may coincide.
    """
    try:
        size = os.path.getsize(filename)
    except FileNotFoundError:
        raise DataNotFoundError(f"text file not found: {filename}") from None
    step = size // num_chunks
    inner: list[int] = []
    with open(filename, "rb") as handle:
        for i in range(1, num_chunks):
            in_same_line = inner and step * i < inner[-1]
            inner.append(inner[-1] if in_same_line else _end_of_line(handle, step * i, size))
    return [0, *inner, size]


ByteRange = tuple[int, int]


def byte_ranges(filename: str | os.PathLike[str], count: int) -> list[ByteRange]:
    """At most ``count`` ranges [start, stop) of about the same size that end where lines do; none is empty."""
    return [(start, stop) for start, stop in pairwise(find_offsets(filename, count)) if stop > start]


def chunk_ranges(filename: str | os.PathLike[str], workers: int) -> list[ByteRange]:
    """`byte_ranges` of at most about a megabyte, and no fewer than ``workers`` unless the file is small."""
    size = os.path.getsize(filename) if os.path.exists(filename) else 0
    return byte_ranges(filename, max(1, -(-size // BLOCK_BYTES), min(workers, size // LEAST_BYTES)))


def _end_of_line(handle: BinaryIO, position: int, size: int) -> int:
    handle.seek(position)
    first = position
    while position < size:
        if position - first > LONGEST_LINE:
            refuse_long_line(handle.name)
        block = handle.read(BLOCK_BYTES)
        if block.endswith(b"\r"):
            block += handle.read(1)
        found = _LINE_END.search(block)
        if found:
            return position + found.end()
        position += len(block)
    return size


class LoneReturns:
    """How many ends of lines were a ``\\r`` without ``\\n``, which few other programs take for one."""

    count = 0


def read_blocks(
    filename: str | os.PathLike[str], start: int = 0, stop: int | None = None, returns: LoneReturns | None = None
) -> Iterator[list[str]]:
    """Lists of lines (without their ends) of the bytes ``[start, stop)``, about a megabyte at a time.

    ``start`` and ``stop`` must be offsets from `find_offsets`. A last line without line end counts; an empty rest
    after the last line end does not. A byte-order mark is left out. ``returns`` counts some of the ends. Raises DataError
    for bytes that are not UTF-8.
    """
    returns = returns or LoneReturns()
    stop = os.path.getsize(filename) if stop is None else stop
    carry = b""
    with open(filename, "rb") as handle:
        handle.seek(start)
        position = start
        while position < stop:
            block = handle.read(min(BLOCK_BYTES, stop - position))
            if not block:
                break
            position += len(block)
            block = carry + block
            if position < stop:
                # Keep the unfinished last line, and a final "\r" whose "\n" may come with the next block.
                cut = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1
                block, carry = block[:cut], block[cut:]
                if len(carry) > LONGEST_LINE:
                    refuse_long_line(filename)
            at = position - len(block) - len(carry) * (position < stop)
            mark = len(BOM_UTF8) if at == 0 and block.startswith(BOM_UTF8) else 0
            lines = _decode(block[mark:], filename, at + mark, returns)
            if lines:
                yield lines


def describe_lone_returns(filename: str | os.PathLike[str], count: int) -> str:
    """A sentence about the ``count`` lone carriage returns of a file."""
    return (
        f"{filename} has {count:,} carriage returns (\\r) without a line feed: each was taken for the end of a line, as by"
        " the original; replace them with spaces if they stand inside lines"
    )


def _decode(block: bytes, filename: str | os.PathLike[str], offset: int, returns: LoneReturns) -> list[str]:
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{filename} is not UTF-8 text: byte {offset + error.start} is {block[error.start]:#04x};"
            " convert the file (for example with iconv) and run again"
        ) from None
    if "\r" in text:
        returns.count += text.count("\r") - text.count("\r\n")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


@contextmanager
def Chunker(path: str | os.PathLike[str], start_offset: int, end_offset: int) -> Iterator[Iterator[str]]:
    """The lines (each with a ``\\n`` at its end) of one chunk, see `read_blocks`.

    ``end_offset`` of 0 or less reads to the end of the file, as in the original.
    """
    blocks = read_blocks(path, start_offset, end_offset if end_offset > 0 else None)
    yield (line + "\n" for lines in blocks for line in lines)
