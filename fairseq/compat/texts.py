"""Helpers on words and labels: vectors from text files, pairs of symbols, scores of arrays."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.errors import DataError

logger = logging.getLogger("fairseq.utils")


def parse_embedding(embed_path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Word -> vector of a text file: a line "words dimensions", then a line per word. Raises DataError."""
    vectors: dict[str, Tensor] = {}
    with open(embed_path, encoding="utf-8") as handle:
        next(handle, None)
        for number, line in enumerate(handle, start=2):
            word, *numbers = line.rstrip().split(" ")
            try:
                vectors[word] = torch.tensor([float(number) for number in numbers])
            except ValueError as error:
                raise DataError(f"{embed_path}, line {number}: {error}") from None
    return vectors


def load_embedding(embed_dict: dict[str, Tensor], vocab: Any, embedding: nn.Embedding) -> nn.Embedding:
    """``embedding`` with the vectors of those symbols of ``vocab`` that ``embed_dict`` has."""
    with torch.no_grad():
        for index in range(len(vocab)):
            if vocab[index] in embed_dict:
                embedding.weight[index] = embed_dict[vocab[index]]
    return embedding


def print_embed_overlap(embed_dict: dict[str, Tensor], vocab_dict: Any) -> None:
    """Log how many types of ``vocab_dict`` have a vector."""
    found = len(set(embed_dict) & set(vocab_dict.symbols))
    logger.info("found %d/%d types in embedding file", found, len(vocab_dict))


def get_pairs(word: Any) -> set[tuple[Any, Any]]:
    """All pairs of neighbouring symbols of a word."""
    return set(zip(word, word[1:], strict=False))


def simple_accuracy(preds: Any, labels: Any) -> float:
    return (preds == labels).mean()


def acc_and_f1(preds: Any, labels: Any) -> dict[str, float]:
    """Accuracy, F1 of class 1, and their mean, of arrays of classes."""
    from sklearn.metrics import f1_score

    accuracy, f1 = simple_accuracy(preds, labels), f1_score(y_true=labels, y_pred=preds)
    return {"acc": accuracy, "f1": f1, "acc_and_f1": (accuracy + f1) / 2}


def pearson_and_spearman(preds: Any, labels: Any) -> dict[str, float]:
    """Both correlations of two arrays of numbers, and their mean."""
    from scipy.stats import pearsonr, spearmanr

    pearson, spearman = pearsonr(preds, labels)[0], spearmanr(preds, labels)[0]
    return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
