"""What a loaded RoBERTa says about raw texts: answers of a span head, labels of a token head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fairseq.errors import DataError
from fairseq.finetune.spans import (
    Answer,
    Rules,
    SpanDataset,
    WindowSizes,
    best_answers,
    decide_all,
    questions_in_memory,
)
from fairseq.finetune.words import TokenLabelsDataset, unlabelled, word_labels
from fairseq.models.inference import Sample, head_outputs, length_batches

ANSWERING_HEAD = "question_answering_head"
TAGGING_HEAD = "token_classification_head"
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
    rules = rules._replace(n_best=max(n_best, rules.n_best))
    asked = [(str(number), question, context) for number, (question, context) in enumerate(pairs)]
    source = questions_in_memory(asked, hub.bpe, task.source_dictionary)
    dataset = SpanDataset(source, task.source_dictionary, sizes)
    outputs = _outputs(hub, dataset, head, ANSWERING_HEAD, batch_size)
    decisions = decide_all((dataset.candidates(batch["id"], logits, rules.n_best) for batch, logits in outputs), rules)
    return [
        best_answers(source, number, decisions[number], rules.allow_no_answer)[:n_best] for number in range(len(pairs))
    ]


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
    source = unlabelled(sentences, hub.bpe, hub.task.source_dictionary)
    dataset = TokenLabelsDataset(source, hub.task.source_dictionary, hub.model.max_positions())
    found: list[list[str]] = [[""] * len(words) for words in sentences]
    for batch, logits in _outputs(hub, dataset, head, TAGGING_HEAD, batch_size):
        for sentence, word, _, label in word_labels(batch, logits).tolist():
            found[sentence][word] = str(label) if names is None else names[label]
    return found


def _outputs(
    hub: Any, dataset: Any, head: str | None, default: str, batch_size: int
) -> Iterator[tuple[Sample, Tensor]]:
    """Outputs of ``head``, else of the one that the fine-tuning task names, else of ``default``."""
    name = str(head or getattr(hub.task, "head_name", default))
    return head_outputs(hub.model, length_batches(dataset, batch_size), name)
