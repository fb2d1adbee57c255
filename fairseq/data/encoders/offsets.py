"""Where the pieces of an encoder stand in the text, so that spans of pieces can be turned into spans of characters.

An encoder may offer ``encode_with_offsets(text) -> (symbols, spans)``: the symbols of its ``encode`` and, for each, the
characters [start, stop) it was made from. For any other encoder the decoded pieces are looked for one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
        spans = locate([bpe.decode(symbol) for symbol in symbols], line)
    return symbols, [trim(line, span) for span in spans]


def trim(text: str, span: Span) -> Span:
    """``span`` without the whitespace at its ends."""
    start, stop = span
    while start < stop and text[start].isspace():
        start += 1
    while start < stop and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def locate(pieces: Sequence[str], text: str) -> list[Span]:
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
