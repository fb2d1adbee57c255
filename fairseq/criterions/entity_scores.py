"""Scores of token classification: accuracy, and precision, recall and F1 of whole entities by ``seqeval``."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

from fairseq.errors import ConfigError


def load_seqeval() -> Any:
    """``seqeval.metrics``. Raises ConfigError, saying what to install, when it is not there."""
    try:
        return importlib.import_module("seqeval.metrics")
    except ImportError as error:
        raise ConfigError(
            f"entity scores need seqeval ({error}): pip install 'seqeval>=1.2.2', or choose another "
            "metric with --no-entity-scores"
        ) from None


def accuracy(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> float:
    """Share of the words whose label is right, x100."""
    pairs = [
        pair for target, found in zip(targets, predictions, strict=True) for pair in zip(target, found, strict=True)
    ]
    return 100.0 * sum(target == found for target, found in pairs) / max(1, len(pairs))


def entity_scores(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1`` (x100) of entities, micro-averaged, in the lenient reading of conlleval.

    Arguments are one list of labels (``B-PER``, ``I-PER``, ``O``, ...) a sentence.
    """
    metrics = load_seqeval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels without a prefix, divisions by zero: 0 is the answer
        values = {
            "precision": metrics.precision_score(targets, predictions),
            "recall": metrics.recall_score(targets, predictions),
            "f1": metrics.f1_score(targets, predictions),
        }
    return {name: 100.0 * float(value) for name, value in values.items()}
