"""Questions about contexts as windows for a model, and the way back from its logits to characters.

Legend: B windows, T tokens, C pieces of a context, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.offsets import Span, encode_with_offsets, trim
from fairseq.data.question_windows import BEFORE_CONTEXT, own_spans, pieces_of, split_context, target_in
from fairseq.data.span_search import NO_ANSWER, best_spans
from fairseq.data.window_dataset import WindowDataset

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Record:
    """What is known of a question beside its pieces: its context and its answers (text, first character)."""

    id: str
    context: int
    answers: tuple[tuple[str, int], ...] = ()


class SpanSource(Protocol):
    """Questions and contexts as ids without special symbols, with what leads from pieces to characters."""

    @property
    def questions(self) -> Any:
        """Sequence of int64 tensors."""

    @property
    def contexts(self) -> Any:
        """Sequence of int64 tensors (C)."""

    @property
    def texts(self) -> list[str]:
        """The text of every context."""

    @property
    def records(self) -> list[Record]:
        """What is known of every question."""

    def spans(self, context: int) -> npt.NDArray[Any]:
        """Characters [start, stop) of every piece of a context (C, 2)."""


class LooseQuestions:
    """A `SpanSource` of (question, context) texts in memory; equal contexts that follow each other are encoded once."""

    def __init__(self, pairs: Sequence[tuple[str, str]], bpe: Any, dictionary: Dictionary) -> None:
        self.questions: list[Tensor] = []
        self.contexts: list[Tensor] = []
        self.texts: list[str] = []
        self.records: list[Record] = []
        self._spans: list[npt.NDArray[Any]] = []

        def ids(symbols: list[str]) -> Tensor:
            return torch.tensor([dictionary.index(symbol) for symbol in symbols], dtype=torch.int64)

        for number, (question, context) in enumerate(pairs):
            if not self.texts or self.texts[-1] != context:
                symbols, spans = encode_with_offsets(bpe, context)
                self.texts.append(context)
                self.contexts.append(ids(symbols))
                self._spans.append(np.asarray(spans, dtype=np.int64).reshape(-1, 2))
            self.questions.append(ids(encode_with_offsets(bpe, question)[0]))
            self.records.append(Record(str(number), len(self.contexts) - 1))

    def spans(self, context: int) -> npt.NDArray[Any]:
        return self._spans[context]


class WindowSizes(NamedTuple):
    """Tokens of a window (special symbols included), pieces from one window to the next, and the most pieces of a question
    and of an answer."""

    length: int
    stride: int
    query: int
    answer: int


class SpanDataset(WindowDataset):
    """Every window of every question; items and batches are described at `__getitem__` and `collater`.

    ``name`` is that of the split. Windows are cut when the data set is made, tokens are read when asked for.
    """

    def __init__(self, source: SpanSource, dictionary: Dictionary, sizes: WindowSizes, name: str = "") -> None:
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

    def _answer(self, record: Record) -> Span | None:
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
