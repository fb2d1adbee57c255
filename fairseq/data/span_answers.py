"""From the candidates of windows to answers as text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from fairseq.data.span_dataset import SpanSource
from fairseq.data.span_search import Candidate, Decision, decide


class Answer(NamedTuple):
    """Characters [start, end) of a context and their text (empty, with start and end -1: no answer).

    ``score`` is the sum of two logits, ``probability`` its share among the best spans (and "no answer", where that is a
    choice).
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


class Rules(NamedTuple):
    """How many spans are kept of a window and a question, whether no answer is a choice, and how far it must lead."""

    n_best: int = 20
    allow_no_answer: bool = False
    threshold: float = 0.0


def decide_all(candidates: Iterable[Tensor], rules: Rules) -> dict[int, Decision]:
    """The decision on every question that has candidates (rows of `SpanDataset.candidates`), by its number."""
    found: dict[int, list[Candidate]] = defaultdict(list)
    for rows in candidates:
        for question, start, stop, score in rows.tolist():
            found[int(question)].append(Candidate(int(start), int(stop), score))
    return {
        question: decide(found[question], rules.n_best, rules.allow_no_answer, rules.threshold)
        for question in sorted(found)
    }


def answer_text(source: SpanSource, question: int, decision: Decision) -> str:
    """The characters of the best span, or nothing when there is no answer."""
    if not decision.answered:
        return ""
    best = decision.spans[0]
    return source.texts[source.records[question].context][best.start : best.stop]


def best_answers(source: SpanSource, question: int, decision: Decision, allow_no_answer: bool) -> list[Answer]:
    """What is answered first, then the other choices by score."""
    context = source.texts[source.records[question].context]
    choices = [(context[span.start : span.stop], span) for span in decision.spans]
    null = Candidate(-1, -1, decision.null)
    if allow_no_answer or not choices:
        choices.insert(0 if not decision.answered else len(choices), ("", null))
    highest = max(span.score for _, span in choices)
    weights = [math.exp(span.score - highest) for _, span in choices]
    ranked = sorted(range(1, len(choices)), key=lambda i: -choices[i][1].score)
    return [
        Answer(choices[i][0], choices[i][1].start, choices[i][1].stop, choices[i][1].score, weights[i] / sum(weights))
        for i in (0, *ranked)
    ]
