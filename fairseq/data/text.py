"""Small text rules shared by the dictionary, the encoders and the commands: tokenizing a line, undoing sub-words."""

from __future__ import annotations

import re

SPACE_NORMALIZER = re.compile(r"\s+")


def tokenize_line(line: str) -> list[str]:
    """Words of ``line``: any run of Unicode whitespace separates, none is kept."""
    return line.split()


# symbol -> (deleted or replaced marker); each of them deletes all spaces, then turns the marker into a space.
_JOINERS = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}


def post_process(sentence: str, symbol: str | None) -> str:
    """Undo the sub-word split named ``symbol`` (``--post-process``); None and ``none`` do nothing."""
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
