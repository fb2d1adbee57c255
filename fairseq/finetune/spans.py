"""Questions about long contexts as windows that a model can take, and the way back from its logits to answers as text.

A window is ``<s> question </s> </s> part of the context </s>``. Windows of one question overlap, so that an answer
cut by one edge is whole in another; what stands in several windows is judged where it has the most context on both
sides. BERT's run_squad applies this rule to the first token of an answer alone, and so never finds an answer that the
best window of its first token cuts; here it is applied to the whole span.

From logits of beginning and end come the best spans of a window, from those of all windows the best answer of a
question.

Legend: B or W windows, T tokens, C pieces of the context (of a window), N candidates, L longest answer in tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import Span, encode_with_offsets, trim
from fairseq.errors import ConfigError, DataError
from fairseq.finetune.words import WindowDataset


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
        allowed: (B, T, L), True where a span may begin that is that many tokens long, less one.
        count: N, or fewer when there are fewer spans in all; missing ones have a score of -inf.

    The search is exhaustive, not over the best beginnings times the best ends.
    """
    begin, end = logits.float().unbind(-1)
    longest = allowed.size(2)
    later = pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)  # (B, T, L): ends from each beginning
    scores = (begin.unsqueeze(-1) + later).masked_fill(~allowed, -torch.inf).flatten(1)  # (B, T * L)
    values, places = scores.topk(min(count, scores.size(1)), dim=1)
    first = places // longest
    return values, first, first + places % longest


class Rules(NamedTuple):
    """How many spans are kept of a window and a question, whether no answer is a choice, and how far it must lead."""

    n_best: int = 20
    allow_no_answer: bool = False
    threshold: float = 0.0


def decide(candidates: Iterable[Candidate], rules: Rules) -> Decision:
    """The answer to one question from the ``candidates`` of all its windows.

    "No answer" is as likely as in the window where it is least likely, and every window has a candidate for it; where it
    is a choice, it is chosen when it beats the best span by more than the threshold (in logits).
    """
    best: dict[tuple[int, int], Candidate] = {}
    null = math.inf
    for candidate in candidates:
        span = (candidate.start, candidate.stop)
        if span == NO_ANSWER:
            null = min(null, candidate.score)
        elif span not in best or candidate.score > best[span].score:
            best[span] = candidate
    spans = sorted(best.values(), key=lambda candidate: (-candidate.score, candidate.start, candidate.stop))
    answered = bool(spans) and not (rules.allow_no_answer and null - spans[0].score > rules.threshold)
    return Decision(spans[: rules.n_best], null, answered)


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


@dataclass(frozen=True)
class QuestionRecord:
    """What is known of a question beside its pieces: its context and its answers (text, first character)."""

    id: str
    context: int
    answers: tuple[tuple[str, int], ...] = ()


@dataclass
class Questions:
    """``questions`` and their ``contexts`` (C) as ids without special symbols, the ``texts`` of the contexts, and for
    every piece of a context the characters [start, stop) that it stands for (``offsets``, 2C, start and stop in turn):
    sequences of int64 tensors."""

    records: list[QuestionRecord]
    questions: Any
    texts: list[str]
    contexts: Any
    offsets: Any

    def spans(self, context: int) -> Ints:
        """Characters [start, stop) of every piece of a context (C, 2)."""
        return self.offsets[context].numpy().reshape(-1, 2)


def questions_in_memory(asked: Iterable[tuple[str, str, str]], bpe: Any, dictionary: Dictionary) -> Questions:
    """(id, question, context) as texts, without answers; equal contexts that follow each other are encoded once."""
    source = Questions([], questions := [], [], contexts := [], offsets := [])

    def ids(symbols: list[str]) -> Tensor:
        return torch.tensor([dictionary.index(symbol) for symbol in symbols], dtype=torch.int64)

    for identity, question, context in asked:
        if source.texts[-1:] != [context]:
            symbols, spans = encode_with_offsets(bpe, context)
            source.texts.append(context)
            contexts.append(ids(symbols))
            offsets.append(torch.tensor(spans, dtype=torch.int64))
        questions.append(ids(encode_with_offsets(bpe, question)[0]))
        source.records.append(QuestionRecord(identity, len(contexts) - 1))
    return source


class WindowSizes(NamedTuple):
    """Tokens of a window (special symbols included), pieces from one window to the next, and the most pieces of a question
    and of an answer."""

    length: int
    stride: int
    query: int
    answer: int


class SpanDataset(WindowDataset):
    """Every window of every question; items and batches are described at `__getitem__` and `collater`.

    ``name`` is that of the split. Windows are cut when the dataset is made, tokens are read when asked for.
    """

    def __init__(self, source: Questions, dictionary: Dictionary, sizes: WindowSizes, name: str = "") -> None:
        super().__init__()
        self.source, self.name = source, name
        self._dictionary, self._window = dictionary, sizes
        rows: list[tuple[int, int, int, int, int]] = []
        lengths: list[int] = []
        for question, record in enumerate(source.records):
            query = min(len(source.questions[question]), sizes.query)
            pieces = len(source.contexts[record.context])
            answer = self._answer(record)
            for first, stop in split_context(pieces, query, sizes.length, sizes.stride).tolist():
                rows.append((question, first, stop, *target_in((first, stop), answer, query)))
                lengths.append(query + stop - first + 4)
        self._rows: Ints = np.array(rows, dtype=np.int64).reshape(-1, 5)
        self.sizes: Ints = np.array(lengths, dtype=np.int64)

    def _answer(self, record: QuestionRecord) -> Span | None:
        """First and last piece of the first answer."""
        if not record.answers:
            return None
        text, start = record.answers[0]
        return pieces_of((start, start + len(text)), self.source.spans(record.context))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``source`` (T) and ``target`` (2): first and last token of the answer (0, 0: none here)."""
        question, first, stop, start, end = self._rows[index].tolist()
        query = self.source.questions[question][: self._window.query]
        context = self.source.contexts[self.source.records[question].context]
        bos, eos = torch.tensor([self._dictionary.bos()]), torch.tensor([self._dictionary.eos()])
        source = torch.cat([bos, query, eos, eos, context[first:stop], eos])
        return {"id": index, "source": source, "target": torch.tensor([start, end])}

    def __len__(self) -> int:
        return len(self._rows)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "target" (B, 2), "subset", "nsentences",
        "ntokens"}``."""
        if not samples:
            return {}
        return self.batch(samples, self._dictionary.pad()) | {
            "target": torch.stack([sample["target"] for sample in samples]),
        }

    def candidates(self, ids: Tensor, logits: Tensor, count: int) -> Tensor:
        """The ``count`` best spans of the windows ``ids`` (B), and their "no answer", from logits (B, T, 2): float64 (N, 4).

        A row has the question's number, the characters [start, stop) of its context (-1, -1: no answer) and the score, a
        sum of two logits.
        """
        windows = self._rows[ids.cpu().numpy()]
        allowed = torch.zeros(*logits.shape[:2], self._window.answer, dtype=torch.bool)
        before = []  # tokens before the context
        for row, (question, first, stop) in enumerate(windows[:, :3].tolist()):
            query = min(len(self.source.questions[question]), self._window.query)
            before.append(query + BEFORE_CONTEXT)
            allowed[row, before[row] : before[row] + stop - first] = self._own(question, query, first)
        scores, firsts, lasts = (
            part.cpu().numpy() for part in best_spans(logits.detach(), allowed.to(logits.device), count)
        )
        null = logits[:, 0].float().sum(-1).tolist()
        rows: list[tuple[float, ...]] = []
        for row, (question, first) in enumerate(windows[:, :2].tolist()):
            context = self.source.records[question].context
            text, spans = self.source.texts[context], self.source.spans(context)
            rows.append((question, *NO_ANSWER, null[row]))
            found = np.isfinite(scores[row])
            pieces = np.stack([firsts[row], lasts[row]], axis=1)[found] - before[row] + first
            for score, (begin, end) in zip(scores[row][found].tolist(), pieces, strict=True):
                start, stop = trim(text, (int(spans[begin, 0]), int(spans[end, 1])))
                if start < stop:  # else whitespace alone
                    rows.append((question, start, stop, score))
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)

    def _own(self, question: int, query: int, first: int) -> Tensor:
        """The spans that are judged in the window beginning at piece ``first`` (C, L)."""
        pieces = len(self.source.contexts[self.source.records[question].context])
        windows = split_context(pieces, query, self._window.length, self._window.stride)
        number = int(np.flatnonzero(windows[:, 0] == first)[0])
        return torch.from_numpy(own_spans(windows, number, self._window.answer))


class Answer(NamedTuple):
    """Characters [start, end) of a context and their text (empty, with start and end -1: no answer).

    ``score`` is the sum of two logits, ``probability`` its fraction among the best spans (and "no answer", where that is a
    choice).
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


def decide_all(candidates: Iterable[Tensor], rules: Rules) -> dict[int, Decision]:
    """The decision on every question that has candidates (rows of `SpanDataset.candidates`), by its number."""
    found: dict[int, list[Candidate]] = defaultdict(list)
    for rows in candidates:
        for question, start, stop, score in rows.tolist():
            found[int(question)].append(Candidate(int(start), int(stop), score))
    return {question: decide(found[question], rules) for question in sorted(found)}


def answer_text(source: Questions, question: int, decision: Decision) -> str:
    """The characters of the best span, or nothing when there is no answer."""
    if not decision.answered:
        return ""
    best = decision.spans[0]
    return source.texts[source.records[question].context][best.start : best.stop]


def best_answers(source: Questions, question: int, decision: Decision, allow_no_answer: bool) -> list[Answer]:
    """What is answered first, then the other choices by score."""
    context = source.texts[source.records[question].context]
    choices = list(decision.spans)
    if allow_no_answer or not choices:
        choices.insert(0 if not decision.answered else len(choices), Candidate(*NO_ANSWER, decision.null))
    highest = max(span.score for span in choices)
    weights = [math.exp(span.score - highest) for span in choices]
    first, *others = (
        Answer(context[span.start : span.stop], *span, weight / sum(weights))
        for span, weight in zip(choices, weights, strict=True)
    )
    return [first, *sorted(others, key=lambda answer: -answer.score)]
