"""The reference implementation of the GPT-2 encoder: the definition, character by character, without tables or libraries."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from fairseq.data.encoders.gpt2_bpe import WHITESPACE, bytes_to_unicode

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def kind(char: str) -> str:
    """``space``, ``letter`` (category L), ``number`` (category N) or ``other``."""
    if char in WHITESPACE:
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(char)[0], "other")


def pre_tokenize(text: str) -> list[str]:
    """Cut ``text`` into the pieces that are merged separately; joined they give ``text`` back.

    At each position the first that fits: a contraction; a run of letters, of numbers or of other characters, each with
    at most one space before it; whitespace, which leaves its last character to the text that follows, if it can.
    """
    pieces = []
    start = 0
    while start < len(text):
        stop = _piece_end(text, start)
        pieces.append(text[start:stop])
        start = stop
    return pieces


def _piece_end(text: str, start: int) -> int:
    for contraction in CONTRACTIONS:
        if text.startswith(contraction, start):
            return start + len(contraction)
    word = start + 1 if text[start] == " " and start + 1 < len(text) else start
    if kind(text[word]) != "space":
        return _run_end(text, word)
    stop = _run_end(text, start)
    return stop - 1 if stop < len(text) and stop - start > 1 else stop


def _run_end(text: str, start: int) -> int:
    stop = start + 1
    while stop < len(text) and kind(text[stop]) == kind(text[start]):
        stop += 1
    return stop


def merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Merge the best-ranked adjacent pair, all its occurrences from left to right, until no pair has a rank."""
    while len(symbols) > 1:
        best = min(zip(symbols, symbols[1:], strict=False), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        i = 0
        while i < len(symbols):
            if tuple(symbols[i : i + 2]) == best:
                merged.append(symbols[i] + symbols[i + 1])
                i += 2
            else:
                merged.append(symbols[i])
                i += 1
        symbols = merged
    return symbols


def encode(text: str, encoder: dict[str, int], merges: Sequence[tuple[str, str]]) -> list[int]:
    """Ids of ``text``; a KeyError for a symbol that ``encoder`` does not list."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    alphabet = bytes_to_unicode()
    ids: list[int] = []
    for piece in pre_tokenize(text):
        symbols = [alphabet[byte] for byte in piece.encode("utf-8")]
        ids.extend(encoder[symbol] for symbol in merge(symbols, ranks))
    return ids
