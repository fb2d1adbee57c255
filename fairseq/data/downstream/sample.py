"""Do the texts, the encoder and the dictionary belong together? Judged by the first lines of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq.data.dictionary import Dictionary
from fairseq.errors import DataError

LINES = 200
_LEAST = 8  # words that allow a judgement
_SPACE = "\u2581"  # how sentence pieces write a space


class Sample:
    """The first `LINES` texts of ``path``; `check` refuses what would train on nonsense without a sign of it."""

    def __init__(self, path: Path, dictionary: Dictionary, encodes: bool) -> None:
        self._path, self._dictionary, self._encodes = path, dictionary, encodes
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        if len(self._lines) < LINES and line.strip():
            self._lines.append(line)

    def check(self, bpe: Any) -> None:
        """Raises DataError for text that is encoded twice or never, and for a dictionary of another encoder."""
        words = [word for line in self._lines for word in line.split()]
        if len(words) < _LEAST:
            return
        if not self._encodes:
            if self._unknown(words) >= 0.9:
                raise DataError(
                    f"{self._path}: {self._unknown(words):.0%} of the words are not in the dictionary, so this is raw"
                    " text; give the encoder that the dictionary was made with, for example --bpe gpt2"
                )
            return
        what = self._encoded_as(words)
        if what:
            raise DataError(
                f"{self._path} consists of {what}, so it is encoded already and --bpe would encode it twice;"
                " leave --bpe out, or give the raw text"
            )
        pieces = [piece for line in self._lines for piece in bpe.encode(line.strip()).split()]
        if pieces and self._unknown(pieces) >= 0.9:
            raise DataError(
                f"{self._path}: {self._unknown(pieces):.0%} of the pieces that --bpe makes are not in the dictionary;"
                " give the dictionary that belongs to this encoder"
            )

    def _unknown(self, words: list[str]) -> float:
        """Share of the words that the dictionary does not have."""
        return sum(word not in self._dictionary for word in words) / len(words)

    def _encoded_as(self, words: list[str]) -> str | None:
        digits = [word for word in words if word.isascii() and word.isdigit()]
        if len(digits) >= 0.95 * len(words) and self._unknown(digits) < 0.5:
            return "numbers that are symbols of the dictionary"
        if sum(word.startswith(_SPACE) for word in words) >= 0.3 * len(words):
            return "sentence pieces"
        return None
