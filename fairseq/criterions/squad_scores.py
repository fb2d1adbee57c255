"""Exact match and F1 by the rules of SQuAD's official scripts (evaluate-v1.1.py and evaluate-v2.0.py).

Scores lie in [0, 1]. The two scripts agree on questions whose answers have words; where an answer is nothing but articles
and punctuation they differ: 1.1 finds no common word (F1 0), 2.0 takes it for "no answer".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and surplus whitespace; in this order."""
    text = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 when both are the same after normalisation."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def f1(prediction: str, answer: str, no_answer: bool = False) -> float:
    """F1 of the bags of normalised words; with ``no_answer`` (2.0) two answers without words agree."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if no_answer and not (found and wanted):
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def score(prediction: str, answers: Sequence[str], no_answer: bool = False) -> tuple[float, float]:
    """(exact match, F1) of ``prediction`` against the best of several ``answers``.

    With ``no_answer`` (SQuAD 2.0), answers without words do not count, and a question without any other is right when
    the prediction has none either. Without, a question needs an answer.
    """
    if no_answer:
        answers = [answer for answer in answers if normalize_answer(answer)] or [""]
    if not answers:
        return 0.0, 0.0
    return (
        max(exact_match(prediction, answer) for answer in answers),
        max(f1(prediction, answer, no_answer) for answer in answers),
    )
