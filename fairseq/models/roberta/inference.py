"""Heads of a loaded RoBERTa run over data, in batches of like length: ``roberta.answer(...)``, ``roberta.tag(words)``.

Legend: N candidates or words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.errors import ConfigError, DataError
from fairseq.finetune.spans import Answer, LooseQuestions, Rules, SpanDataset, WindowSizes, best_answers, decide_all
from fairseq.finetune.words import LooseSentences, TokenLabelsDataset, word_labels
from fairseq.tree import map_tensors


def head_outputs(
    hub: Any, dataset: Any, head: str | None, default: str, batch_size: int
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(batch, output of the head) of all of ``dataset``, in evaluation mode and without gradients.

    The head is ``head``, else the one that the fine-tuning task names, else ``default``. Raises ConfigError when the
    model has none of that name.
    """
    name = head or getattr(hub.task, "head_name", default)
    heads = hub.model.classification_heads
    if name not in heads:
        raise ConfigError(f"the model has no head {name!r}; its heads: {', '.join(heads) or 'none'}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, but is {batch_size} instead")
    order = np.argsort(dataset.sizes, kind="stable")
    training = hub.model.training
    hub.model.eval()
    try:
        for first in range(0, len(order), batch_size):
            sample = dataset.collater([dataset[int(index)] for index in order[first : first + batch_size]])
            sample = map_tensors(lambda tensor: tensor.to(hub.device), sample)
            with torch.no_grad():
                output = hub.model(**sample["net_input"], features_only=True, classification_head_name=name)[0]
            yield sample, output
    finally:
        hub.model.train(training)


ANSWERING_HEAD = "question_answering_head"
SIZES = WindowSizes(length=512, stride=128, query=64, answer=30)


def answers(
    hub: Any, pairs: Sequence[tuple[str, str]], n_best: int = 1, batch_size: int = 16, head: str | None = None
) -> list[list[Answer]]:
    """The ``n_best`` answers to each of several (question, context), best first.

    Windows, the longest answer and whether there may be none are those of the fine-tuning task. Raises ConfigError when
    the model has no such head.
    """
    task = hub.task
    sizes = getattr(task, "windows", None) or SIZES._replace(length=hub.model.max_positions())
    rules = getattr(task, "rules", None) or Rules()
    source = LooseQuestions(pairs, hub.bpe, task.source_dictionary)
    dataset = SpanDataset(source, task.source_dictionary, sizes)
    rules = rules._replace(n_best=max(n_best, rules.n_best))
    decisions = decide_all(candidates(hub, dataset, rules.n_best, batch_size, head), rules)
    return [
        best_answers(source, number, decisions[number], rules.allow_no_answer)[:n_best] for number in range(len(pairs))
    ]


def candidates(
    hub: Any, dataset: SpanDataset, count: int, batch_size: int = 16, head: str | None = None
) -> Iterator[Tensor]:
    """The best spans of every window of ``dataset`` (N, 4), batch by batch."""
    for sample, logits in head_outputs(hub, dataset, head, ANSWERING_HEAD, batch_size):
        yield dataset.candidates(sample["id"], logits, count)


TAGGING_HEAD = "token_classification_head"


def tags(
    hub: Any, sentences: Sequence[Sequence[str]], batch_size: int = 32, head: str | None = None
) -> list[list[str]]:
    """The label of every word of several sentences.

    Labels are named by the fine-tuning task, or numbered when it has no names. Raises ConfigError when the model has no
    such head, DataError for a sentence without words.
    """
    for number, words in enumerate(sentences):
        if isinstance(words, str) or not words or not all(words):
            raise DataError(f"sentence {number} must be a list of words, none of them empty, but is {words!r:.80}")
    names = getattr(hub.task, "class_names", None)
    source = LooseSentences(sentences, hub.bpe, hub.task.source_dictionary)
    dataset = TokenLabelsDataset(source, hub.task.source_dictionary, hub.model.max_positions())
    found: list[list[str]] = [[""] * len(words) for words in sentences]
    for rows in labels(hub, dataset, batch_size, head):
        for sentence, word, _, label in rows.tolist():
            found[sentence][word] = str(label) if names is None else names[label]
    return found


def labels(hub: Any, dataset: TokenLabelsDataset, batch_size: int = 32, head: str | None = None) -> Iterator[Tensor]:
    """Sentence, word, target and predicted class of every word (N, 4), batch by batch."""
    for sample, logits in head_outputs(hub, dataset, head, TAGGING_HEAD, batch_size):
        yield word_labels(sample, logits)
