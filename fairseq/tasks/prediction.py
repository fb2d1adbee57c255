"""What tasks make of examples and of a head's outputs: classes, sets of classes, numbers, choices; files of predictions.

Legend: B batch, T tokens, K classes, values or choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.wrappers import ListDataset, PrependTokenDataset, TruncateDataset
from fairseq.errors import DataError
from fairseq.file_io import complete_file
from fairseq.finetune.layout import CHOICES, CLASSES, SETS, VALUES
from fairseq.finetune.sentences import (
    check_not_empty,
    check_same_length,
    input_dataset,
    load_sentences,
    require_sentences,
)
from fairseq.finetune.spans import Decision, Questions, answer_text, best_answers
from fairseq.tasks.choices import SentenceRankingTask
from fairseq.tasks.sentence_task import MASK, SentencePredictionTask


@dataclass(frozen=True)
class Prediction:
    """One answer. ``value``: the label, the labels, the number(s), or the number of the choice from 0.

    ``probabilities`` of every label or choice; None for numbers.
    """

    value: Any
    probabilities: dict[str, float] | None = None

    @property
    def probability(self) -> float | None:
        """Of the one label or choice that was predicted."""
        if self.probabilities is None or isinstance(self.value, list):
            return None
        return self.probabilities[str(self.value)]


class Reader:
    """Reads examples for a sentence task, and answers in the outputs of a head with ``outputs`` outputs.

    Examples are joined as ``task`` joined them in training and cut to ``limit`` tokens; ``shortened`` counts the longer
    ones. ``kind`` is one of classes, sets (several labels per example), values (regression) and choices.
    """

    def __init__(self, task: Any, outputs: int, limit: int) -> None:
        self.task, self._outputs, self._limit = task, outputs, limit
        self.dictionary = task.source_dictionary
        self.shortened = 0
        self.kind = self._kind()
        self.labels = self._labels()

    def _kind(self) -> str:
        if isinstance(self.task, SentenceRankingTask):
            return CHOICES
        if isinstance(self.task, SentencePredictionTask):
            return VALUES if self.task.regression_target else SETS if self.task.multi_label else CLASSES
        return VALUES if self._outputs == 1 else CLASSES  # a head on a pretraining checkpoint

    def _labels(self) -> list[str]:
        """Names of the K classes; their numbers where no dictionary names them."""
        if self.kind == CHOICES:
            return [str(k) for k in range(self.task.cfg.num_classes)]
        if self.kind == VALUES:
            return []
        dictionary = getattr(self.task, "label_dictionary", None)
        symbols = [] if dictionary is None else dictionary.symbols[dictionary.nspecial :]
        real = [symbol for symbol in symbols if symbol != MASK and not symbol.startswith("madeupword")]
        if len(real) > self._outputs or len(symbols) < self._outputs:  # the labels of another head
            return [str(k) for k in range(self._outputs)]
        return symbols[: self._outputs]

    @property
    def columns(self) -> tuple[int, ...]:
        """How many texts an example may have."""
        return (1 + len(self.labels),) if self.kind == CHOICES else (1, 2)

    def text_columns(self, rows: Sequence[Sequence[str]], bpe: Any) -> list[Any]:
        """Texts, one row per example, as columns of ids, each text ending with ``</s>`` as preprocessing makes them."""

        def ids(text: str) -> Tensor:
            pieces = text.strip() if bpe is None else bpe.encode(text.strip())
            return self.dictionary.encode_line(pieces, append_eos=True, add_if_not_exist=False).long()

        columns = [[ids(text) for text in texts] for texts in zip(*rows, strict=True)]
        return [ListDataset(column, np.array([len(row) for row in column])) for column in columns]

    def examples(self, columns: Sequence[Any]) -> Any:
        """The dataset of examples given as columns of ids, as `fairseq.models.inference` runs it."""
        sequences = self._sequences(columns)
        sizes = np.maximum.reduce([np.asarray(tokens.sizes) for tokens in sequences])
        self.shortened += int((sizes > self._limit).sum())
        names = [f"net_input{k}" for k in range(1, len(sequences) + 1)] if self.kind == CHOICES else ["net_input"]
        inputs = {name: TruncateDataset(tokens, self._limit) for name, tokens in zip(names, sequences, strict=True)}
        return input_dataset(inputs, self.dictionary, sizes, getattr(self.task, "token_types", False))

    def _sequences(self, columns: Sequence[Any]) -> list[Any]:
        """Model inputs, or those of each choice."""
        task = self.task
        if len(columns) not in self.columns:
            wanted = " or ".join(map(str, self.columns))
            raise DataError(f"an example of this model has {wanted} texts, but {len(columns)} are given")
        if self.kind == CHOICES:
            context, *options = columns
            return [task.join(context, option) for option in options]
        if isinstance(task, SentencePredictionTask):
            return [task.join(*columns)]
        first = PrependTokenDataset(columns[0], self.dictionary.bos())
        others = [PrependTokenDataset(column, self.dictionary.eos()) for column in columns[1:]]
        return [ConcatSentencesDataset(first, *others)]

    def answers(self, logits: Tensor) -> list[Prediction]:
        """The answers in outputs (B, K)."""
        scores = logits.float().cpu()
        if self.kind == VALUES:
            return [Prediction(row[0] if len(row) == 1 else row) for row in scores.tolist()]
        probabilities = torch.sigmoid(scores) if self.kind == SETS else torch.softmax(scores, dim=1)
        return [self._answer(row) for row in probabilities.tolist()]

    def _answer(self, row: list[float]) -> Prediction:
        named = dict(zip(self.labels, row, strict=True))
        if self.kind == SETS:
            return Prediction([label for label, probability in named.items() if probability > 0.5], named)
        best = max(range(len(row)), key=row.__getitem__)
        return Prediction(best if self.kind == CHOICES else self.labels[best], named)


def split_columns(data: str, split: str, dictionary: Any) -> list[Any]:
    """The inputs of a binarized split: ``DATA/input0/split`` and as many more as there are.

    Raises DataNotFoundError and DataError as the tasks do. Labels are not read.
    """
    inputs = {"input0": require_sentences(data, "input0", split, dictionary)}
    for k in count(1):
        column = load_sentences(data, f"input{k}", split, dictionary)
        if column is None:
            break
        inputs[f"input{k}"] = column
    check_same_length(data, split, inputs)
    check_not_empty(data, split, inputs)
    return list(inputs.values())


def write_text(path: str, text: str) -> None:
    """Write ``text`` to ``path``, whose directory is made if need be. Raises DataError when that is not possible."""
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(place) as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"cannot write the predictions to {path}: {error.strerror or error}") from None


def write_labels(
    path: str,
    words: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]] | None,
    predictions: Sequence[Sequence[str]],
) -> None:
    """Write ``word target prediction`` per line (without ``targets``: ``word prediction``), an empty line after a sentence."""
    columns = [words, predictions] if targets is None else [words, targets, predictions]
    blocks = (
        "".join(" ".join(row) + "\n" for row in zip(*sentence, strict=True)) for sentence in zip(*columns, strict=True)
    )
    write_text(path, "".join(block + "\n" for block in blocks))


def write_answers(path: str, source: Questions, decisions: Mapping[int, Decision], allow_no_answer: bool) -> None:
    """Write ``{question id: answer}`` to ``path``, and beside it ``FILE.nbest.json`` with the best spans.

    With ``allow_no_answer`` also ``FILE.null_odds.json``: by how much (in logits) no answer leads, for the
    ``--na-prob-file`` of evaluate-v2.0.py.
    """
    ids = {number: source.records[number].id for number in decisions}
    contents: dict[str, dict[str, Any]] = {
        path: {ids[number]: answer_text(source, number, decision) for number, decision in decisions.items()},
        _beside(path, "nbest"): {
            ids[number]: [answer._asdict() for answer in best_answers(source, number, decision, allow_no_answer)]
            for number, decision in decisions.items()
        },
    }
    if allow_no_answer:
        contents[_beside(path, "null_odds")] = {ids[number]: found.margin for number, found in decisions.items()}
    for name, content in contents.items():
        write_text(name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _beside(path: str, what: str) -> str:
    place = Path(path)
    return str(place.with_name(f"{place.stem if place.suffix == '.json' else place.name}.{what}.json"))
