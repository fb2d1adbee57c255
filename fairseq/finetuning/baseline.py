"""What the best answer that ignores the text scores: the floor that every result has to leave.

All values are in hundredths, as the criterions report them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

POSITIVE = "1"  # the class that GLUE's F1 is about


def constant_score(metric: str, labels: Mapping[str, int]) -> float:
    """The highest ``metric`` that one and the same answer for every row reaches; ``labels`` counts the rows by label.

    For accuracy that is the share of the most frequent class, for F1 what "always yes" scores. A constant has no
    correlation with anything, so Matthews, Pearson and Spearman are 0.
    """
    total = sum(labels.values())
    if not total or metric not in ("accuracy", "f1", "acc_and_f1"):
        return 0.0
    return 100 * max(_constant(metric, label, labels) for label in labels)


def _constant(metric: str, answer: str, labels: Mapping[str, int]) -> float:
    share = labels[answer] / sum(labels.values())
    f1 = 2 * share / (1 + share) if answer == POSITIVE else 0.0
    return {"accuracy": share, "f1": f1, "acc_and_f1": (share + f1) / 2}[metric]


def standard_error(metric: str, baseline: float, rows: int) -> float:
    """How far chance alone moves a score at ``baseline`` on ``rows`` rows, one standard deviation (in hundredths).

    Binomial for shares of right answers (and, roughly, for F1); ``1 / sqrt(rows)`` for correlations near 0.
    """
    if metric in ("accuracy", "f1", "acc_and_f1"):
        share = baseline / 100
        return 100 * math.sqrt(max(share * (1 - share), 0.0) / rows)
    return 100 / math.sqrt(rows)
