"""Questions answered by a loaded RoBERTa with a span head: ``roberta.answer(question, context)``.

Legend: N candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fairseq.data.span_answers import Answer, Rules, best_answers, decide_all
from fairseq.data.span_dataset import LooseQuestions, SpanDataset, WindowSizes
from fairseq.models.roberta.head_outputs import head_outputs

HEAD = "question_answering_head"
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
    for sample, logits in head_outputs(hub, dataset, head, HEAD, batch_size):
        yield dataset.candidates(sample["id"], logits, count)
