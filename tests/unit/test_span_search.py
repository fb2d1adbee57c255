"""Windows over long contexts, the search for the best spans, and the decision between them and no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairseq.errors import ConfigError, DataError
from fairseq.finetune.spans import (
    NO_ANSWER,
    Candidate,
    Rules,
    best_spans,
    decide,
    decide_all,
    own_spans,
    pieces_of,
    split_context,
    target_in,
)


@pytest.mark.parametrize("pieces", [0, 1, 2, 6, 7, 8, 13, 20, 21, 101])
@pytest.mark.parametrize("stride", [1, 3, 6, 7, 1000])
def test_windows_cover_the_context(pieces: int, stride: int) -> None:
    room = 7
    windows = split_context(pieces, question=5, max_positions=room + 5 + 4, stride=stride)
    assert windows[0, 0] == 0 and windows[-1, 1] == pieces
    assert (windows[:, 1] - windows[:, 0] <= room).all()
    covered = {piece for first, stop in windows.tolist() for piece in range(first, stop)}
    assert covered == set(range(pieces))
    assert (np.diff(windows[:, 0]) == min(stride, room)).all()
    assert len(windows) == 1 or windows[-2, 1] < pieces  # no window more than it takes


def test_windows_refuse_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="a question of 60 pieces leaves no room .* in 64 tokens"):
        split_context(10, question=60, max_positions=64, stride=4)
    with pytest.raises(ConfigError, match="--doc-stride must be at least 1, but is 0"):
        split_context(10, question=1, max_positions=64, stride=0)


@pytest.mark.parametrize("pieces, room, stride", [(1, 5, 2), (9, 5, 2), (23, 7, 3), (23, 8, 1), (40, 11, 11)])
@pytest.mark.parametrize("longest", [1, 4, 9])
def test_spans_belong_to_the_window_with_most_context(pieces: int, room: int, stride: int, longest: int) -> None:
    windows = split_context(pieces, 0, room + 4, stride)
    own = [own_spans(windows, number, longest) for number in range(len(windows))]
    for begin in range(pieces):
        for length in range(longest):
            scores = [
                min(begin - first, stop - 1 - begin - length) + 0.01 * (stop - first)
                if first <= begin and begin + length < stop
                else -1.0
                for first, stop in windows.tolist()
            ]
            owners = [
                number
                for number, (first, stop) in enumerate(windows.tolist())
                if first <= begin < stop and own[number][begin - first, length]
            ]
            # One window at most; none only where no window holds the span.
            assert owners == ([scores.index(max(scores))] if max(scores) >= 0 else [])


def test_targets_lie_where_the_answer_is_whole() -> None:
    # <s> q q </s> </s> c c c ...: the context begins at 5.
    assert target_in((0, 4), (1, 2), question=2) == (6, 7)
    assert target_in((3, 9), (3, 8), question=2) == (5, 10)
    assert target_in((0, 4), (3, 4), question=2) == (0, 0)  # cut by the edge
    assert target_in((2, 4), (1, 2), question=2) == (0, 0)
    assert target_in((0, 4), None, question=2) == (0, 0)


def test_pieces_of_characters() -> None:
    spans = [(0, 3), (4, 8), (8, 9), (10, 10), (10, 14)]
    assert pieces_of((4, 9), spans) == (1, 2)
    assert pieces_of((5, 6), spans) == (1, 1)  # within a piece
    assert pieces_of((2, 12), spans) == (0, 4)
    assert pieces_of((9, 10), spans) is None  # whitespace alone
    assert pieces_of((3, 9), []) is None


@pytest.mark.parametrize("tokens, count, longest", [(1, 1, 1), (5, 3, 2), (9, 30, 30), (13, 7, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_search_finds_what_trying_everything_finds(tokens: int, count: int, longest: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3, tokens, 2).to(dtype)
    longest = min(longest, tokens)
    allowed = torch.rand(3, tokens, longest) < 0.7
    for length in range(longest):
        allowed[:, tokens - length :, length] = False
    scores, firsts, lasts = best_spans(logits, allowed, count)
    for row in range(3):
        every = {
            (first, last): float(logits[row, first, 0].float() + logits[row, last, 1].float())
            for first in range(tokens)
            for last in range(first, min(first + longest, tokens))
            if allowed[row, first, last - first]
        }
        best = sorted(every.values(), reverse=True)[:count]
        found = [value for value in scores[row].tolist() if value > -np.inf]
        assert found == pytest.approx(best)
        for value, first, last in zip(found, firsts[row].tolist(), lasts[row].tolist(), strict=False):
            assert every[first, last] == pytest.approx(value)


def test_decision_between_windows() -> None:
    candidates = [Candidate(3, 5, 4.0), Candidate(3, 5, 7.0), Candidate(9, 11, 6.0), Candidate(*NO_ANSWER, 8.0)]
    found = decide([*candidates, Candidate(*NO_ANSWER, 7.5)], Rules(2, True))
    assert found.spans == [Candidate(3, 5, 7.0), Candidate(9, 11, 6.0)]  # a span in two windows counts once
    assert found.null == 7.5 and found.margin == 0.5  # the window where no answer is least likely
    assert not found.answered
    assert decide(candidates, Rules(2)).answered
    assert decide([*candidates, Candidate(*NO_ANSWER, 7.5)], Rules(2, True, 0.5)).answered
    assert not decide([*candidates, Candidate(*NO_ANSWER, 7.5)], Rules(2, True, 0.49)).answered


def test_decision_without_any_span() -> None:
    found = decide([Candidate(*NO_ANSWER, -3.0)], Rules(5))
    assert not found.answered and found.spans == [] and found.margin == np.inf


def test_candidates_are_sorted_by_question() -> None:
    rows = torch.tensor([[1, 0, 2, 5.0], [0, 3, 4, 1.0], [1, -1, -1, 0.0], [0, -1, -1, 9.0]], dtype=torch.float64)
    found = decide_all([rows[:2], rows[2:]], Rules(allow_no_answer=True))
    assert list(found) == [0, 1]
    assert not found[0].answered and found[1].answered
