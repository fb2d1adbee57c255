"""Sentences that come as words with a label each: inputs whose words are labelled at their first piece.

Legend: B batch, T tokens, W words of a sentence, N words of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.batching import collate_tokens
from fairseq.data.datasets import SizedDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import encode_with_offsets
from fairseq.errors import ConfigError
from fairseq.layout import IGNORED


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


class WindowDataset(SizedDataset):
    """Items have ``id`` and ``source`` (T); ``sizes`` holds the tokens of each, ``name`` is the subset's."""

    name: str

    def batch(self, samples: list[dict[str, Any]], pad: int) -> dict[str, Any]:
        """``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "subset", "nsentences", "ntokens"}``."""
        lengths = torch.tensor([len(sample["source"]) for sample in samples])
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "net_input": {
                "src_tokens": collate_tokens([sample["source"] for sample in samples], pad),
                "src_lengths": lengths,
            },
            "subset": self.name,
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
        }


SPECIALS = 2  # <s> sentence </s>


@dataclass
class LabelledSentences:
    """``words`` (W) of every sentence with their ``pieces`` as ids without special symbols, the number of pieces of every
    word (``sizes``, W), and the class of every word (``labels``, W), if known: sequences of int64 tensors."""

    words: Sequence[Sequence[str]]
    pieces: Any
    sizes: Any
    labels: Any = None


def unlabelled(sentences: Sequence[Sequence[str]], bpe: Any, dictionary: Dictionary) -> LabelledSentences:
    """Words in memory, whose labels are not known."""
    symbols = [word_pieces(bpe, words, dictionary.unk_word) for words in sentences]
    ids = [[dictionary.index(symbol) for found in words for symbol in found] for words in symbols]
    sizes = [torch.tensor([len(found) for found in words]) for words in symbols]
    return LabelledSentences(sentences, [torch.tensor(row, dtype=torch.int64) for row in ids], sizes)


def split_into_windows(sizes: Tensor, room: int) -> list[tuple[int, int]]:
    """Runs [first, stop) of words of ``sizes`` pieces that have at most ``room`` pieces together; one longer is alone."""
    runs: list[tuple[int, int]] = []
    first = taken = 0
    for word, size in enumerate(sizes.tolist()):
        if word > first and taken + size > room:
            runs.append((first, word))
            first, taken = word, 0
        taken += size
    runs.append((first, len(sizes)))
    return runs


class TokenLabelsDataset(WindowDataset):
    """Sentences; one too long for ``max_positions`` tokens becomes several items, cut between words.

    A word of more pieces than fit is cut to its first ones. ``name`` is that of the split.
    """

    def __init__(self, source: LabelledSentences, dictionary: Dictionary, max_positions: int, name: str = "") -> None:
        super().__init__()
        self.source, self.name = source, name
        self._dictionary = dictionary
        self._room = max_positions - SPECIALS
        if self._room < 1:
            raise ConfigError(f"task.max_positions must be at least {SPECIALS + 1}, but is {max_positions} instead")
        rows: list[tuple[int, int, int]] = []
        lengths: list[int] = []
        for sentence in range(len(source.pieces)):
            sizes = source.sizes[sentence]
            for first, stop in split_into_windows(sizes, self._room):
                rows.append((sentence, first, stop))
                lengths.append(min(int(sizes[first:stop].sum()), self._room) + SPECIALS)
        self._rows = rows
        self.sizes = np.array(lengths, dtype=np.int64)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``source`` (T), ``target`` (T) classes at first pieces and `IGNORED` elsewhere, ``words`` (T) True at first
        pieces, ``sentence`` its number and ``first`` that of the first word."""
        sentence, first, stop = self._rows[index]
        sizes = self.source.sizes[sentence]
        begin, length = int(sizes[:first].sum()), int(self.sizes[index]) - SPECIALS
        bos, eos = torch.tensor([self._dictionary.bos()]), torch.tensor([self._dictionary.eos()])
        source = torch.cat([bos, self.source.pieces[sentence][begin : begin + length], eos])
        places = 1 + sizes[first:stop].cumsum(0) - sizes[first:stop]
        words = torch.zeros(len(source), dtype=torch.bool)
        words[places] = True
        target = torch.full((len(source),), IGNORED, dtype=torch.int64)
        if self.source.labels is not None:
            target[places] = self.source.labels[sentence][first:stop]
        return {"id": index, "source": source, "target": target, "words": words, "sentence": sentence, "first": first}

    def __len__(self) -> int:
        return len(self._rows)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "target" (B, T), "words" (B, T),
        "sentence" (B), "first" (B), "subset", "nsentences", "ntokens"}``."""
        if not samples:
            return {}
        return self.batch(samples, self._dictionary.pad()) | {
            "target": collate_tokens([sample["target"] for sample in samples], IGNORED),
            "words": collate_tokens([sample["words"] for sample in samples], 0),
            "sentence": torch.tensor([sample["sentence"] for sample in samples]),
            "first": torch.tensor([sample["first"] for sample in samples]),
        }


def word_labels(sample: dict[str, Any], logits: Tensor) -> Tensor:
    """What logits (B, T, K) say of every word of a batch: int64 (N, 4) of sentence, word, target, prediction."""
    words = sample["words"]
    row = words.nonzero()[:, 0]
    number = (words.cumsum(dim=1) - 1)[words] + sample["first"][row]
    found = logits[words].argmax(dim=-1)
    return torch.stack([sample["sentence"][row], number, sample["target"][words], found], dim=1).cpu()
