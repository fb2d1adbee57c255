"""Whole-word masking: which symbols of a dictionary begin a word."""

from __future__ import annotations

from typing import Any

import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.build import build_bpe


def get_whole_word_mask(args: Any, dictionary: Dictionary) -> torch.Tensor | None:
    """1 for each symbol that begins a word: a uint8 tensor (V); None when ``args`` names no bpe.

    ``args`` is an encoder, its settings, a name or a parsed Namespace, see `build_bpe`. Specials, ``madeupword`` rows
    and symbols that the encoder cannot decode count as words of their own.
    """
    bpe = build_bpe(args)
    if bpe is None:
        return None

    def is_beginning_of_word(idx: int) -> bool:
        if idx < dictionary.nspecial:
            return True
        symbol = dictionary[idx]
        if symbol.startswith("madeupword"):
            return True
        try:
            return bool(bpe.is_beginning_of_word(symbol))
        except ValueError:
            return True

    return torch.ByteTensor([is_beginning_of_word(idx) for idx in range(len(dictionary))])
