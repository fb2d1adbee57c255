"""From logits of beginning and end to answers: the best spans of a window, then the best answer of a question.

Legend: B windows, T tokens, N candidates, L longest answer in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Candidate(NamedTuple):
    """A possible answer: characters [start, stop) of the context (-1, -1: no answer) and the sum of its two logits."""

    start: int
    stop: int
    score: float


NO_ANSWER = (-1, -1)


class Decision(NamedTuple):
    """What is answered: the best spans, best first, the score of no answer, and whether the first span is the answer."""

    spans: list[Candidate]
    null: float
    answered: bool

    @property
    def margin(self) -> float:
        """By how much (in logits) no answer beats the best span; infinite where there is no span at all."""
        return self.null - self.spans[0].score if self.spans else math.inf


def best_spans(logits: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best spans of each window: scores (B, N) float32, first and last tokens (B, N), best first.

    Args:
        logits: (B, T, 2) of beginning and end.
        allowed: (B, T, L), True where a span of so many tokens less one may begin.
        count: N, or fewer when there are not so many spans at all; missing ones have a score of -inf.

    The search is exhaustive, not over the best beginnings times the best ends.
    """
    begin, end = logits.float().unbind(-1)
    longest = allowed.size(2)
    later = pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)  # (B, T, L): ends from each beginning
    scores = (begin.unsqueeze(-1) + later).masked_fill(~allowed, -torch.inf).flatten(1)  # (B, T * L)
    values, places = scores.topk(min(count, scores.size(1)), dim=1)
    first = places // longest
    return values, first, first + places % longest


def decide(candidates: Iterable[Candidate], count: int, allow_no_answer: bool, threshold: float = 0.0) -> Decision:
    """The answer to one question from the ``candidates`` of all its windows.

    "No answer" is as likely as in the window where it is least likely, and every window has a candidate for it; with
    ``allow_no_answer`` it is chosen when it beats the best span by more than ``threshold`` (in logits).
    """
    best: dict[tuple[int, int], Candidate] = {}
    null = math.inf
    for candidate in candidates:
        span = (candidate.start, candidate.stop)
        if span == NO_ANSWER:
            null = min(null, candidate.score)
        elif span not in best or candidate.score > best[span].score:
            best[span] = candidate
    spans = sorted(best.values(), key=lambda candidate: (-candidate.score, candidate.start, candidate.stop))[:count]
    answered = bool(spans) and not (allow_no_answer and null - spans[0].score > threshold)
    return Decision(spans, null, answered)
