"""Predictions of fine-tuned models for raw texts and for binarised splits, and the files they are written to.

Examples are joined as the checkpoint's task joined them in training, cut to the model's length, batched by length,
and answered in their own order. A file is written whole or not at all: labels of words in columns, as ``conlleval``
reads them, answers as SQuAD's official scripts read them. Legend: B batch, T tokens, K classes, values or choices.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.wrappers import ListDataset, PrependTokenDataset
from fairseq.errors import ConfigError, DataError
from fairseq.finetune.sentences import check_not_empty, check_same_length, load_sentences, require_sentences
from fairseq.finetune.spans import Decision, SpanSource, answer_text, best_answers
from fairseq.tasks.choices import SentenceRankingTask
from fairseq.tasks.sentence_task import MASK, SentencePredictionTask

CLASSES, SETS, VALUES, CHOICES = "classes", "sets", "values", "choices"


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


class Predictor:
    """Predictions of ``hub`` (a RobertaHubInterface) by its head ``head``, ``batch_size`` examples at a time.

    ``kind`` is one of classes, sets (several labels an example), values (regression) and choices. ``shortened`` counts
    the examples that were longer than the model takes. Raises ConfigError when there is no such head.
    """

    def __init__(self, hub: Any, head: str | None = None, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1, but is {batch_size}")
        self.hub, self.task, self.batch_size = hub, hub.task, batch_size
        self.dictionary = hub.task.source_dictionary
        self.head = self._head(head)
        self.shortened = 0
        self.outputs = _outputs(hub.model.classification_heads[self.head], self.head)
        self.kind = self._kind()
        self.labels = self._labels()
        hub.eval()

    def _head(self, name: str | None) -> str:
        heads = list(self.hub.model.classification_heads)
        cfg = self.task.cfg
        wanted = name or getattr(cfg, "classification_head_name", None) or getattr(cfg, "ranking_head_name", None)
        if wanted in heads:
            return str(wanted)
        if name is None and len(heads) == 1:
            return heads[0]
        known = f"its heads are {', '.join(heads)}" if heads else "it has none: fine-tune it on a task first"
        raise ConfigError(f"the model has no head {wanted or '(none named)'}; {known}")

    def _kind(self) -> str:
        if isinstance(self.task, SentenceRankingTask):
            return CHOICES
        if isinstance(self.task, SentencePredictionTask):
            return VALUES if self.task.regression_target else SETS if self.task.multi_label else CLASSES
        return VALUES if self.outputs == 1 else CLASSES  # a head on a pretraining checkpoint

    def _labels(self) -> list[str]:
        """Names of the K classes; their numbers where no dictionary names them."""
        if self.kind == CHOICES:
            return [str(k) for k in range(self.task.cfg.num_classes)]
        if self.kind == VALUES:
            return []
        dictionary = getattr(self.task, "label_dictionary", None)
        symbols = [] if dictionary is None else dictionary.symbols[dictionary.nspecial :]
        real = [symbol for symbol in symbols if symbol != MASK and not symbol.startswith("madeupword")]
        if len(real) > self.outputs or len(symbols) < self.outputs:  # the labels of another head
            return [str(k) for k in range(self.outputs)]
        return symbols[: self.outputs]

    @property
    def columns(self) -> tuple[int, ...]:
        """How many texts an example may have."""
        return (1 + len(self.labels),) if self.kind == CHOICES else (1, 2)

    def predict_texts(
        self, rows: Sequence[Sequence[str]], done: Callable[[int], Any] | None = None
    ) -> list[Prediction]:
        """Answers to examples of one or two texts each, or of a context and its choices."""
        columns = []
        for texts in zip(*rows, strict=True):
            ids = [self._ids(text) for text in texts]
            columns.append(ListDataset(ids, np.array([len(row) for row in ids])))
        return self.predict(columns, done)

    def _ids(self, text: str) -> Tensor:
        """Ids (T,) of a text with ``</s>``, as preprocessing makes them."""
        text = text.strip()
        pieces = text if self.hub.bpe is None else self.hub.bpe.encode(text)
        return self.dictionary.encode_line(pieces, append_eos=True, add_if_not_exist=False).long()

    def predict(self, columns: Sequence[Any], done: Callable[[int], Any] | None = None) -> list[Prediction]:
        """Answers to examples given as data sets of ids, each text ending with ``</s>``; ``done(n)`` follows batches."""
        sequences = self._sequences(columns)
        sizes = np.maximum.reduce([np.asarray(tokens.sizes) for tokens in sequences])
        limit = self._limit()
        self.shortened += int((sizes > limit).sum())
        answers: list[Any] = [None] * len(sizes)
        order = np.argsort(-sizes, kind="stable")  # the longest first: what does not fit into memory fails at once
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size].tolist()
            scores = self._scores([[tokens[i][:limit] for i in batch] for tokens in sequences])
            for i, answer in zip(batch, self._answers(scores), strict=True):
                answers[i] = answer
            if done is not None:
                done(len(batch))
        return answers

    def _sequences(self, columns: Sequence[Any]) -> list[Any]:
        """One data set of model inputs, or one for each choice."""
        task: Any = self.task
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

    def _limit(self) -> int:
        limits = [self.task.max_positions(), self.hub.model.max_positions()]
        return min((int(limit) for limit in limits if isinstance(limit, int)), default=1 << 30)

    def _scores(self, rows: list[list[Tensor]]) -> Tensor:
        """Outputs of the head (B, K) in float32; for choices one column each."""
        with torch.no_grad():
            columns = [self.hub.predict(self.head, ids, return_logits=True) for ids in rows]
        return (torch.cat(columns, dim=1) if self.kind == CHOICES else columns[0]).float().cpu()

    def _answers(self, scores: Tensor) -> list[Prediction]:
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
    """The inputs of a binarised split: ``DATA/input0/split`` and as many more as there are.

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


def predict_split(hub: Any, data: str, split: str, head: str | None = None, batch_size: int = 32) -> list[Prediction]:
    """The answers of ``hub`` to the binarised ``split`` of ``data``, in its order."""
    predictor = Predictor(hub, head, batch_size)
    return predictor.predict(split_columns(data, split, predictor.dictionary))


def _outputs(head: Any, name: str) -> int:
    """K of a head on whole sequences. Raises ConfigError for a head that works on tokens."""
    projection = getattr(head, "out_proj", None)
    if projection is None or not hasattr(head, "dense"):
        raise ConfigError(f"the head {name} works on single tokens; only heads of whole sentences are supported here")
    return int(projection.out_features)


def write_text(path: str, text: str) -> None:
    """Write ``text`` to ``path``, whose directory is made if need be. Raises DataError when that is not possible."""
    place = Path(path)
    beside = place.with_name(place.name + ".partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="\n")
        os.replace(beside, place)
    except OSError as error:
        raise DataError(f"cannot write the predictions to {path}: {error.strerror or error}") from None


def write_labels(
    path: str,
    words: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]] | None,
    predictions: Sequence[Sequence[str]],
) -> None:
    """Write ``word target prediction`` a line (without ``targets``: ``word prediction``), an empty line after a sentence."""
    columns = [words, predictions] if targets is None else [words, targets, predictions]
    blocks = (
        "".join(" ".join(row) + "\n" for row in zip(*sentence, strict=True)) for sentence in zip(*columns, strict=True)
    )
    write_text(path, "".join(block + "\n" for block in blocks))


def write_answers(path: str, source: SpanSource, decisions: Mapping[int, Decision], allow_no_answer: bool) -> None:
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
