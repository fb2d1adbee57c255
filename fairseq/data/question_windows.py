"""Long contexts in windows that a model can take, for extractive question answering.

A window is ``<s> question </s> </s> part of the context </s>``. Windows of one question overlap, so that an answer cut
by one edge is whole in another; what stands in several windows is judged where it has the most context on both sides.
BERT's run_squad applies this rule to the first token of an answer alone, and so never finds an answer that the best window
of its first token cuts; here it is applied to the whole span.

Legend: C pieces of the context (of a window), W windows, L lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairseq.data.encoders.offsets import Span
from fairseq.errors import ConfigError, DataError

SPECIALS = 4  # <s> question </s> </s> context </s>
BEFORE_CONTEXT = 3  # the specials among them that stand before the context

Ints = npt.NDArray[np.int64]


def split_context(pieces: int, question: int, max_positions: int, stride: int) -> Ints:
    """Windows (W, 2) over ``pieces`` of a context: first piece and the one after the last.

    A window has as many pieces as fit into ``max_positions`` tokens beside a question of ``question`` pieces; windows
    begin ``stride`` pieces apart, or nearer when that would leave a gap. A context without pieces has one empty window.
    Raises DataError when the question leaves no room.
    """
    if stride < 1:
        raise ConfigError(f"--doc-stride must be at least 1, but is {stride} instead")
    room = max_positions - question - SPECIALS
    if room < 1:
        raise DataError(
            f"a question of {question} pieces leaves no room for its context in {max_positions} tokens; lower "
            "--max-query-length or raise --max-positions"
        )
    stride = min(stride, room)
    count = 1 + max(0, -(-(pieces - room) // stride))
    first = np.arange(count, dtype=np.int64) * stride
    return np.stack([first, np.minimum(first + room, pieces)], axis=1)


def own_spans(windows: Ints, number: int, longest: int) -> npt.NDArray[np.bool_]:
    """Which spans are judged in window ``number``: (C, L), True at [piece, length - 1].

    Row 0 is the window's first piece; lengths go up to ``longest`` pieces. A span belongs to the one window that shows the
    most context: the smaller of the numbers of pieces before and after it, plus a hundredth of the window's length; of
    equal windows the first.
    """
    begin = np.arange(*windows[number])[:, None]
    end = begin + np.arange(longest)

    def context(first: int, stop: int) -> npt.NDArray[np.float64]:
        least = np.minimum(begin - first, stop - 1 - end)
        return np.where(least >= 0, least + 0.01 * (stop - first), -1.0)

    mine = context(*windows[number])
    own = mine >= 0
    for other, (first, stop) in enumerate(windows.tolist()):
        if other != number and first < windows[number, 1] and stop > windows[number, 0]:
            theirs = context(first, stop)
            own &= mine > theirs if other < number else mine >= theirs
    return own


def pieces_of(answer: Span, spans: Sequence[Span] | npt.NDArray[np.integer]) -> Span | None:
    """First and last piece (both inclusive) that share a character with ``answer``; None when no piece does."""
    spans = np.asarray(spans).reshape(-1, 2)
    start, stop = answer
    touching = np.flatnonzero((spans[:, 0] < stop) & (spans[:, 1] > start))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


def target_in(window: Span, answer: Span | None, question: int) -> Span:
    """Positions (first, last token) of an answer, given in pieces of the context, within a window's tokens.

    (0, 0), the position of ``<s>``, when there is no answer or the window does not hold all of it.
    """
    first, stop = window
    if answer is None or answer[0] < first or answer[1] >= stop:
        return 0, 0
    shift = question + BEFORE_CONTEXT - first
    return answer[0] + shift, answer[1] + shift
