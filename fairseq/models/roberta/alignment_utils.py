"""Features of BPE pieces brought to words.

Legend: T tokens, C channels, W words.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.errors import DataError


class AlignedWord(NamedTuple):
    """A word with its vector (C,), or (L + 1, C) for all hidden states."""

    text: str
    vector: Tensor


def split_words(sentence: str) -> tuple[list[str], Callable[[Tensor], Any]]:
    """The words of ``sentence``, and what makes the final answer of the vectors (W + 2, ...) of ``<s>``, words, ``</s>``.

    With spaCy installed its English tokenizer is used and the answer is a ``Doc``; else words are split at spaces and
    the answer is a list of ``AlignedWord``.
    """
    if importlib.util.find_spec("spacy") is None:
        words = sentence.split()
        return words, lambda vectors: [
            AlignedWord(word, vector) for word, vector in zip(["<s>", *words, "</s>"], vectors, strict=True)
        ]
    nlp = spacy_nlp()
    kept = [token for token in nlp.tokenizer(sentence) if token.text.strip()]
    return [token.text for token in kept], lambda vectors: _document(nlp, kept, vectors)


_NLP: Any = None


def spacy_nlp() -> Any:
    """A blank English spaCy pipeline: its tokenizer and nothing else."""
    global _NLP
    if _NLP is None:
        _NLP = importlib.import_module("spacy").blank("en")
    return _NLP


def spacy_tokenizer() -> Any:
    return spacy_nlp().tokenizer


def _document(nlp: Any, words: Sequence[Any], vectors: Tensor) -> Any:
    texts = ["<s>", *(word.text for word in words), "</s>"]
    # The beginning is joined to the first word as in the sentence; the last word keeps no space.
    spaces = [True, *(bool(word.whitespace_) for word in words[:-1]), True, False][: len(texts)]
    document = importlib.import_module("spacy.tokens").Doc(nlp.vocab, words=texts, spaces=spaces)
    document.user_token_hooks["vector"] = lambda token: vectors[token.i]
    return document


def align_bpe_to_words(roberta: Any, bpe_tokens: Tensor, other_tokens: Sequence[str]) -> list[list[int]]:
    """For every word the positions in ``bpe_tokens`` (T,), which begin with ``<s>``, of the pieces it overlaps.

    Spaces do not count. Raises DataError when words and pieces do not spell the same text.
    """
    dictionary = roberta.task.source_dictionary
    specials = {dictionary.bos(), dictionary.eos(), dictionary.pad()}
    pieces = [
        "" if symbol in specials else _squeezed(roberta._symbol_text(dictionary[symbol]))
        for symbol in bpe_tokens.tolist()
    ]
    words = [_squeezed(str(word)) for word in other_tokens]
    if "".join(pieces) != "".join(words):
        raise DataError(f"the words spell {''.join(words)!r}, but the model's pieces spell {''.join(pieces)!r}")
    owner = [position for position, piece in enumerate(pieces) for _ in piece]  # piece of every character
    alignment, start = [], 0
    for word in words:
        alignment.append(sorted(set(owner[start : start + len(word)])))
        start += len(word)
    return alignment


def _squeezed(text: str) -> str:
    return "".join(text.split())


def align_features_to_words(roberta: Any, features: Tensor, alignment: Sequence[Sequence[int]]) -> Tensor:
    """(T, C) features of pieces -> (W + 2, C): ``<s>``, the words, and what is left over at the end.

    The vector of a piece is shared equally among the words it belongs to; a word is the sum of its shares, so that the
    sum over all rows stays what it was.
    """
    counts = torch.zeros(features.size(0), dtype=features.dtype, device=features.device)
    for positions in alignment:
        counts[list(positions)] += 1
    shares = features / counts.clamp(min=1).unsqueeze(-1)
    last = max((max(positions) for positions in alignment if positions), default=0)
    rows = [shares[0], *(shares[list(positions)].sum(dim=0) for positions in alignment), *shares[last + 1 :]]
    return torch.stack(rows)


__all__ = [
    "AlignedWord",
    "align_bpe_to_words",
    "align_features_to_words",
    "spacy_nlp",
    "spacy_tokenizer",
    "split_words",
]
