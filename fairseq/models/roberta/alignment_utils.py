"""Features of BPE pieces brought to words.

Legend: T tokens, C channels, W words.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.data.encoders.base import Span, pieces_with_spans
from fairseq.errors import DataError

BROKEN = "\ufffd"  # what decoding gives for a part of a character


class AlignedWord(NamedTuple):
    """A word with its vector (C,), or (L + 1, C) for all hidden states."""

    text: str
    vector: Tensor


def split_words(sentence: str) -> tuple[list[Span], Callable[[Tensor], Any]]:
    """Where the words of ``sentence`` are, and what makes the final answer of the vectors (W + 2, ...) of ``<s>``, words,
    ``</s>``.

    With spaCy installed its English tokenizer is used and the answer is a ``Doc``; else words are split at spaces and
    the answer is a list of ``AlignedWord``.
    """
    if importlib.util.find_spec("spacy") is None:
        found = list(re.finditer(r"\S+", sentence))
        texts = ["<s>", *(word.group() for word in found), "</s>"]
        return [word.span() for word in found], lambda vectors: [
            AlignedWord(word, vector) for word, vector in zip(texts, vectors, strict=True)
        ]
    nlp = spacy_nlp()
    kept = [token for token in nlp.tokenizer(sentence) if token.text.strip()]
    spans = [(token.idx, token.idx + len(token.text)) for token in kept]
    return spans, lambda vectors: _document(nlp, kept, vectors)


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


def align_sentence(bpe: Any, sentence: str, words: Sequence[Span]) -> list[list[int]]:
    """For every one of ``words`` the positions of its pieces in ``<s> sentence </s>``, found by the characters they share.

    Pieces of blanks alone go to the word after them, or to the last one. Raises DataError when there are no words.
    """
    if not words:
        raise DataError(f"there are no words in {sentence!r}")
    _, pieces = pieces_with_spans(bpe, sentence)
    return overlaps(pieces, words)


def overlaps(pieces: Sequence[Span], words: Sequence[Span]) -> list[list[int]]:
    """For every one of ``words`` the numbers, from 1, of the ``pieces`` that share a character with it; both are in order.

    A piece without characters goes to the word after it, or to the last one.
    """
    alignment: list[list[int]] = [[] for _ in words]
    starts, stops = [start for start, _ in words], [stop for _, stop in words]
    for number, (start, stop) in enumerate(pieces, start=1):
        first, after = bisect_right(stops, start), bisect_left(starts, stop)
        if start >= stop:
            first = min(bisect_left(starts, start), len(words) - 1)
            after = first + 1
        for word in range(first, after):
            alignment[word].append(number)
    return alignment


def align_bpe_to_words(roberta: Any, bpe_tokens: Tensor, other_tokens: Sequence[str]) -> list[list[int]]:
    """For every word the positions in ``bpe_tokens`` (T,), which begin with ``<s>``, of the pieces it overlaps.

    Spaces do not count. Raises DataError when words and pieces do not spell the same text.
    """
    dictionary = roberta.task.source_dictionary
    ids, specials = bpe_tokens.tolist(), {dictionary.bos(), dictionary.eos(), dictionary.pad()}
    places = [place for place, symbol in enumerate(ids) if symbol not in specials]
    text, pieces = _spelled(roberta, [dictionary[ids[place]] for place in places])
    words = [_squeezed(str(word)) for word in other_tokens]
    if text != "".join(words):
        raise DataError(f"the words spell {''.join(words)!r}, but the model's pieces spell {text!r}")
    ends = itertools.accumulate(map(len, words))
    alignment = overlaps(pieces, [(end - len(word), end) for word, end in zip(words, ends, strict=True)])
    return [[places[number - 1] for number in numbers] for numbers in alignment]


def _spelled(roberta: Any, symbols: Sequence[str]) -> tuple[str, list[Span]]:
    """The text of ``symbols`` without spaces, and the characters of each.

    Pieces of one character, such as bytes of an emoji, can only be decoded together.
    """
    text, spans = "", []
    group: list[str] = []  # since the last piece that ended with a whole character
    before = 0  # characters of the group that were whole before its last piece
    for symbol in symbols:
        group.append(symbol)
        joint = _squeezed(_group_text(roberta, group))
        whole = len(joint.rstrip(BROKEN))
        in_part = len(joint) > whole or len(group) > 1
        spans.append((len(text) + before, len(text) + (max(whole, before + 1) if in_part else whole)))
        before = whole
        if len(joint) == whole:
            text, group, before = text + joint, [], 0
    return text + (_squeezed(_group_text(roberta, group)) if group else ""), spans


def _group_text(roberta: Any, symbols: Sequence[str]) -> str:
    if len(symbols) == 1:
        return roberta._symbol_text(symbols[0])
    try:
        return roberta.bpe.decode(" ".join(symbols))
    except (ValueError, TypeError, KeyError, IndexError):
        return "".join(map(roberta._symbol_text, symbols))


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
    "align_sentence",
    "spacy_nlp",
    "spacy_tokenizer",
    "split_words",
]
