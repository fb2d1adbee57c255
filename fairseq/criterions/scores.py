"""Scores of a whole set of predictions.

Of classes and numbers, times 100, from scikit-learn and SciPy. Both libraries are imported only when something is
scored: training does not wait for them. A score that is undefined (the correlation of constant predictions, for
example) is 0, so that a collapsed model never counts as the best.

Of answers, in [0, 1]: exact match and F1 by the rules of SQuAD's official scripts (evaluate-v1.1.py and
evaluate-v2.0.py). The two scripts agree on questions whose answers have words; where an answer is nothing but
articles and punctuation they differ: 1.1 finds no common word (F1 0), 2.0 takes it for "no answer".
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

DECIMALS = 1

Scores = Callable[[Sequence[tuple[Any, Any]]], dict[str, float]]
"""From the (predictions, targets) of every batch to scores by name."""


def classification(batches: Sequence[tuple[Any, Any]], positive: int | None = None) -> dict[str, float]:
    """``mcc`` and ``macro_f1``; for two classes also ``f1`` of the class ``positive`` and ``acc_and_f1``, its mean with the accuracy.

    Batches hold class indices (B).
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predictions, targets = _joined(batches)
    values = {"mcc": matthews_corrcoef(targets, predictions)}
    if positive is not None:
        f1 = f1_score(targets == positive, predictions == positive, zero_division=0)
        values["f1"] = f1
        values["acc_and_f1"] = (accuracy_score(targets, predictions) + f1) / 2
    values["macro_f1"] = f1_score(targets, predictions, average="macro", zero_division=0)
    return _percent(values)


def multi_label(batches: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """``f1`` (over all decisions) and ``macro_f1`` (mean over the labels) of zeros and ones (B, K)."""
    from sklearn.metrics import f1_score

    predictions, targets = _joined(batches)
    return _percent(
        {
            "f1": f1_score(targets, predictions, average="micro", zero_division=0),
            "macro_f1": f1_score(targets, predictions, average="macro", zero_division=0),
        }
    )


def regression(batches: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """``pearson``, ``spearman`` and their mean ``pearson_and_spearman`` of numbers (B, K), averaged over the K columns."""
    from scipy.stats import pearsonr, spearmanr

    predictions, targets = _joined(batches)
    pearson, spearman = (_correlation(measure, predictions, targets) for measure in (pearsonr, spearmanr))
    return _percent({"pearson": pearson, "spearman": spearman, "pearson_and_spearman": (pearson + spearman) / 2})


def of_classes(positive: int | None) -> Scores:
    """`classification` with ``positive`` chosen."""
    return partial(classification, positive=positive)


def _joined(batches: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    predictions, targets = zip(*batches, strict=True)
    return np.concatenate([np.asarray(part) for part in predictions]), np.concatenate(
        [np.asarray(part) for part in targets]
    )


def _correlation(measure: Callable[[Any, Any], Any], predictions: np.ndarray, targets: np.ndarray) -> float:
    if len(targets) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input: the value is NaN, and 0 here
        values = [float(measure(p, t)[0]) for p, t in zip(predictions.T, targets.T, strict=True)]
    return float(np.mean([0.0 if math.isnan(value) else value for value in values]))


def _percent(values: dict[str, Any]) -> dict[str, float]:
    return {name: round(100.0 * float(value), DECIMALS) for name, value in values.items()}


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and surplus whitespace; in this order."""
    text = "".join(char for char in text.lower() if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 when both are the same after normalization."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def squad_f1(prediction: str, answer: str, no_answer: bool = False) -> float:
    """F1 of the bags of normalized words; with ``no_answer`` (2.0) two answers without words agree."""
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if no_answer and not (found and wanted):
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def squad_score(prediction: str, answers: Sequence[str], no_answer: bool = False) -> tuple[float, float]:
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
        max(squad_f1(prediction, answer, no_answer) for answer in answers),
    )
