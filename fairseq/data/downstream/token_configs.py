"""Options of the formats with a label a word (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import FairseqDataclass, option


@dataclass(kw_only=True)
class ConllConfig(FairseqDataclass):
    """Files of columns."""

    word_column: int = option(0, "conll: column of the words, counted from 0, or from the end when negative")
    label_column: int = option(-1, "conll: column of the labels, likewise")
