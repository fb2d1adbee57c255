"""Scores of whole sets against their definitions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fairseq.criterions import scores


def split(predictions, targets, parts=3):
    pairs = zip(np.array_split(predictions, parts), np.array_split(targets, parts), strict=True)
    return [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]


def test_two_classes():
    predictions, targets = np.array([1, 1, 0, 0, 1, 0, 1]), np.array([1, 0, 0, 1, 1, 0, 1])
    tp, fp, fn, tn = 3, 1, 1, 2
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    f1, accuracy, other = 2 * tp / (2 * tp + fp + fn), 5 / 7, 2 * tn / (2 * tn + fp + fn)
    values = scores.classification(split(predictions, targets), positive=1)
    assert values == {
        "mcc": round(100 * mcc, 1),
        "f1": round(100 * f1, 1),
        "acc_and_f1": round(50 * (accuracy + f1), 1),
        "macro_f1": round(50 * (f1 + other), 1),
    }
    assert scores.of_classes(0)(split(predictions, targets))["f1"] == round(100 * other, 1)


def test_three_classes_have_no_positive_one():
    values = scores.classification(split(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])))
    assert set(values) == {"mcc", "macro_f1"}
    assert values["macro_f1"] == round(100 * (1 + 2 / 3 + 2 / 3) / 3, 1)


def test_correlations():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(20, 2)).astype(np.float32)
    predictions = (targets + rng.normal(size=(20, 2))).astype(np.float32)
    values = scores.regression(split(predictions, targets))
    pearson = np.mean([np.corrcoef(predictions[:, k], targets[:, k])[0, 1] for k in range(2)])
    ranks = [(column.argsort().argsort()) for column in (*predictions.T, *targets.T)]
    spearman = np.mean([np.corrcoef(ranks[k], ranks[k + 2])[0, 1] for k in range(2)])
    assert values["pearson"] == pytest.approx(100 * pearson, abs=0.06)
    assert values["spearman"] == pytest.approx(100 * spearman, abs=0.06)
    assert values["pearson_and_spearman"] == pytest.approx(50 * (pearson + spearman), abs=0.06)


def test_collapsed_predictions_score_nothing():
    flat = np.full((6, 1), 2.5, dtype=np.float32)
    assert set(scores.regression(split(flat, np.arange(6.0)[:, None])).values()) == {0.0}
    assert scores.regression([(torch.ones(1, 1), torch.ones(1, 1))])["pearson"] == 0.0
    assert scores.classification(split(np.zeros(6, int), np.array([0, 1, 0, 1, 0, 1])), positive=1)["mcc"] == 0.0


def test_several_labels():
    predictions = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    targets = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    assert scores.multi_label(split(predictions, targets)) == {"f1": 66.7, "macro_f1": 75.0}


def test_training_waits_for_neither_library():
    program = "import sys, fairseq.criterions.sentences; print({'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
