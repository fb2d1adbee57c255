"""What ALBERT's tokenizer does around a sentencepiece model: text without accents and upper case, digits apart from commas."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

Span = tuple[int, int]
_SPACE = "\u2581"


def plain_text(x: str) -> tuple[str, list[int]]:
    """``x`` with one kind of double quotes, without accents, in lower case, and where in ``x`` each character comes from."""
    characters: list[str] = []
    places: list[int] = []
    at = 0
    while at < len(x):
        quotes = x[at : at + 2] in ("``", "''")
        letters = (
            '"' if quotes else "".join(c for c in unicodedata.normalize("NFKD", x[at]) if not unicodedata.combining(c))
        )
        lower = letters.lower()
        characters.append(lower)
        places += [at] * len(lower)
        at += 2 if quotes else 1
    return "".join(characters), places


def original_spans(spans: Sequence[Span], places: Sequence[int]) -> list[Span]:
    """``spans`` of what `plain_text` gave, in the text that it was made of."""

    def place(at: int) -> int:
        return places[at] if at < len(places) else (places[-1] + 1 if places else 0)

    return [(place(begin), place(end - 1) + 1 if end > begin else place(begin)) for begin, end in spans]


def split_commas(
    pieces: Sequence[str], spans: Sequence[Span], encode: Callable[[str], list[str]]
) -> tuple[list[str], list[Span]]:
    """Pieces that end in a digit and a comma, as those of the number and a comma."""
    found: list[str] = []
    where: list[Span] = []
    for piece, (begin, end) in zip(pieces, spans, strict=True):
        if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
            found.append(piece)
            where.append((begin, end))
            continue
        number = encode(piece[:-1].replace(_SPACE, ""))
        if piece[0] != _SPACE and number[0].startswith(_SPACE):
            number = number[1:] if number[0] == _SPACE else [number[0][1:], *number[1:]]
        parts, stop = [(end - 1, end)], end - 1
        for part in reversed(number):
            start = max(begin, stop - len(part.replace(_SPACE, "")))
            parts.append((start, stop))
            stop = start
        found += [*number, ","]
        where += parts[::-1]
    return found, where
