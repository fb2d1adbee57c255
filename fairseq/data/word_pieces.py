"""The pieces of a sentence that comes as words: which pieces belong to which word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq.data.encoders.offsets import encode_with_offsets


def word_pieces(bpe: Any, words: Sequence[str], unk: str) -> list[list[str]]:
    """The symbols of every word, in the sentence that the words make with single spaces between them.

    A piece belongs to the word that it begins in. A word that gets none (the encoder drops its characters, or joined it to
    the one before) is ``[unk]``, so that every word has a first piece.
    """
    symbols, spans = encode_with_offsets(bpe, " ".join(words))
    lengths = np.array([len(word) + 1 for word in words], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    owners = np.searchsorted(starts, np.array([start for start, _ in spans], dtype=np.int64), side="right") - 1
    pieces: list[list[str]] = [[] for _ in words]
    for symbol, owner in zip(symbols, owners.tolist(), strict=True):
        pieces[owner].append(symbol)
    return [found or [unk] for found in pieces]
