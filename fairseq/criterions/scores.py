"""Scores of a whole set of predictions, times 100, from scikit-learn and SciPy.

Both libraries are imported only when something is scored: training does not wait for them. A score that is undefined (the
correlation of constant predictions, for example) is 0, so that a collapsed model never counts as the best.
"""

from __future__ import annotations

import math
import warnings
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
