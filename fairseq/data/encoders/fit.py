"""Do an encoder and a dictionary belong together? If they do not, nearly every piece is ``<unk>``, and nothing else tells.

`encoder_misfit` asks the two vocabularies, as soon as both are there; `Unknowns` counts what becomes of texts.
"""

from __future__ import annotations

from typing import Any

from fairseq.data.dictionary import Dictionary

REMEDY = "give the dict.txt of the model, and the --bpe (with its files) that it was made with"
_FITS = 0.5  # of the dictionary's symbols; nearly all of them in dictionaries that fit
_UNKNOWN = 0.9
_LEAST = 8  # pieces that allow a judgement


def encoder_misfit(bpe: Any, dictionary: Dictionary) -> str | None:
    """A sentence when most symbols of ``dictionary`` are no pieces of the encoder; None when they are, or nobody knows."""
    pieces = getattr(bpe, "symbols", None)
    if not pieces:
        return None
    made_up = ("<mask>", "madeupword")
    listed = [word for word in dictionary.symbols[dictionary.nspecial :] if not word.startswith(made_up)]
    known = len(set(pieces).intersection(listed))
    if known >= _FITS * len(listed):
        return None
    return (
        f"the dictionary does not fit the BPE: only {known:,} of its {len(listed):,} symbols are pieces that the BPE makes, so"
        f" texts become <unk>; {REMEDY}"
    )


class Unknowns:
    """Counts pieces that were looked up, and speaks once when nearly all of them were unknown."""

    def __init__(self) -> None:
        self.pieces = self.unknown = 0
        self.told = False

    def add(self, pieces: int, unknown: int) -> str | None:
        """A sentence, the first time that there is reason for one."""
        self.pieces += pieces
        self.unknown += unknown
        if self.told or self.pieces < _LEAST or self.unknown < _UNKNOWN * self.pieces:
            return None
        self.told = True
        return f"{self.unknown:,} of {self.pieces:,} pieces of the texts are not in the dictionary; {REMEDY}"
