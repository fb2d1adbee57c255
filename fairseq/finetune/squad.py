"""SQuAD, versions 1.1 and 2.0: its JSON, and the binarized form that ``question_answering`` reads.

For every split, in ``DEST/``:

* ``input0/dict.txt``, ``input0/{split}.bin`` and ``.idx``: pieces of every question, without special symbols;
* ``input1/dict.txt``, ``input1/{split}.bin`` and ``.idx``: pieces of every paragraph (context), once, likewise;
* ``input1/{split}.offsets.bin`` and ``.idx``: int32, for every piece of a context the characters [start, stop) that it
  stands for, start and stop in turn;
* ``input1/{split}.jsonl``: the text of every context, one JSON string per line;
* ``label/{split}.jsonl``: one object per question: ``id``, ``context`` (number of its paragraph, from 0) and ``answers``, a
  list of ``[text, first character]``; an empty one: there is no answer, or it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.encoders.base import encode_with_offsets
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import Job, Sample, SplitSummary, Written
from fairseq.finetune.reading import FORMATS, find_splits, read_json, read_rows, write_row
from fairseq.finetune.spans import QuestionRecord
from fairseq.finetune.writing import SplitWriter

Answer = tuple[str, int]  # text, and its first character in the context


@dataclass(frozen=True)
class Question:
    """A question with its answers as spans of the context; no answers: it has none, or they are not known."""

    id: str
    text: str
    answers: tuple[Answer, ...] = ()


@dataclass
class Paragraph:
    """A context and the questions about it."""

    context: str
    questions: list[Question] = field(default_factory=list)


def read_squad(path: Path, answers: str = "required", moved: list[str] | None = None) -> Iterator[Paragraph]:
    """The paragraphs of ``path``.

    ``answers`` says what the questions have: ``required`` (1.1), ``optional`` (2.0: a question without any is impossible)
    or ``unknown`` (they are not looked at). An answer that does not stand exactly where the file says is taken from the
    nearest place where it does; the ids of such questions are added to ``moved``. Raises DataError, naming file and
    question, for anything else that is wrong.
    """
    seen: set[str] = set()
    for number, paragraph in enumerate(_paragraphs(path), 1):
        context = paragraph.get("context")
        if not isinstance(context, str):
            raise DataError(f"{path}, paragraph {number}: its context must be a text, but is {context!r}")
        found = Paragraph(context)
        for qa in _list(paragraph, "qas", f"{path}, paragraph {number}"):
            question = _question(qa, context, path, answers, moved)
            if question.id in seen:
                raise DataError(f"{path}: the question id {question.id!r} occurs twice; ids must be unique")
            seen.add(question.id)
            found.questions.append(question)
        yield found
    if not seen:
        raise DataError(f"{path} has no questions")


def _paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    root = read_json(path)
    if not isinstance(root, dict) or not isinstance(root.get("data"), list):
        raise DataError(f'{path} is not in the format of SQuAD: expected {{"data": [{{"paragraphs": [...]}}, ...]}}')
    for number, article in enumerate(root["data"], 1):
        yield from _list(article, "paragraphs", f"{path}, article {number}")


def _list(container: Any, key: str, place: str) -> list[dict[str, Any]]:
    value = container.get(key) if isinstance(container, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{place}: {key!r} must be a list of objects, as in SQuAD's files")
    return value


def _question(qa: dict[str, Any], context: str, path: Path, wanted: str, moved: list[str] | None) -> Question:
    identity, text = qa.get("id"), qa.get("question")
    if not isinstance(identity, str) or not isinstance(text, str):
        raise DataError(f"{path}: a question must have an 'id' and a 'question', both texts, but one is {qa!r:.120}")
    place = f"{path}, question {identity!r}"
    if not text.strip():
        raise DataError(f"{place}: the question is empty")
    if wanted == "unknown" or qa.get("is_impossible"):
        if wanted == "required":
            raise DataError(f"{place} is impossible, which SQuAD 1.1 does not know; use --task squad2")
        return Question(identity, text)
    spans = tuple(_answer(answer, context, place, identity, moved) for answer in _list(qa, "answers", place))
    if not spans and wanted == "required":
        raise DataError(f"{place} has no answer; if these are data of SQuAD 2.0, use --task squad2")
    return Question(identity, text, spans)


def _answer(answer: dict[str, Any], context: str, place: str, identity: str, moved: list[str] | None) -> Answer:
    text, start = answer.get("text"), answer.get("answer_start")
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise DataError(f"{place}: an answer must have a 'text' and an integer 'answer_start', but is {answer!r:.120}")
    if not text.strip():
        raise DataError(f"{place}: an answer is empty")
    if start < 0 or start + len(text) > len(context):
        raise DataError(
            f"{place}: the answer span [{start}, {start + len(text)}) is outside the context of {len(context)} characters"
        )
    if context.startswith(text, start):
        return text, start
    nearest = _nearest(text, start, context)
    if nearest is None:
        raise DataError(
            f"{place}: the answer span [{start}, {start + len(text)}) of the context reads "
            f"{context[start : start + len(text)]!r:.60}, not {text!r:.60}, which is nowhere in it"
        )
    if moved is not None:
        moved.append(identity)
    return text, nearest


def _nearest(text: str, start: int, context: str) -> int | None:
    """Where ``text`` stands in ``context`` nearest to ``start``."""
    places = [place for place in (context.rfind(text, 0, start + len(text)), context.find(text, start)) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)


class SquadSplit:
    """One split, as the source of a `fairseq.finetune.spans.SpanDataset`.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self._directory, self._split = Path(directory), split
        prefixes = [self._directory / folder / split for folder in ("input0", "input1")]
        for prefix in prefixes:
            if not Path(f"{prefix}.idx").is_file():
                raise DataNotFoundError(
                    f"Dataset not found: {split} ({prefix}); make it with fairseq-preprocess-task --task squad (or squad2)"
                )
        self.questions = MMapIndexedDataset(str(prefixes[0]))
        self.contexts = MMapIndexedDataset(str(prefixes[1]))
        self._offsets = MMapIndexedDataset(f"{prefixes[1]}.offsets")
        if not np.array_equal(2 * self.contexts.sizes.astype(np.int64), self._offsets.sizes):
            raise DataError(f"{prefixes[1]}.offsets does not belong to {prefixes[1]}; preprocess the data again")

    def spans(self, context: int) -> npt.NDArray[np.int64]:
        """Characters [start, stop) of every piece of a context (C, 2)."""
        return self._offsets[context].numpy().reshape(-1, 2)

    @cached_property
    def texts(self) -> list[str]:
        """The text of every context."""
        return read_rows(self._directory / "input1" / f"{self._split}.jsonl", len(self.contexts))

    @cached_property
    def records(self) -> list[QuestionRecord]:
        """What is known of every question."""
        path = self._directory / "label" / f"{self._split}.jsonl"
        return [self._record(row, path, line) for line, row in enumerate(read_rows(path, len(self.questions)), 1)]

    def _record(self, row: Any, path: Path, line: int) -> QuestionRecord:
        try:
            answers = tuple((str(text), int(start)) for text, start in row["answers"])
            record = QuestionRecord(str(row["id"]), int(row["context"]), answers)
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{path}, line {line}: {json.dumps(row)[:80]} is not a question; preprocess again"
            ) from None
        if not 0 <= record.context < len(self.contexts):
            raise DataError(f"{path}, line {line}: there is no context {record.context}; preprocess the data again")
        return record


KIND = "spans"
_NAMES = {
    "train": ("train-v{}.json", "train.json"),
    "valid": ("dev-v{}.json", "dev.json", "valid.json"),
    "test": ("test-v{}.json", "test.json"),
}


@FORMATS.register("squad")
def write_squad(job: Job) -> Written:
    """SQuAD 1.1: ``train-v1.1.json``, ``dev-v1.1.json`` (or ``train``, ``dev``/``valid``, ``test`` ``.json``)."""
    return _write(job, "1.1", "required")


@FORMATS.register("squad2")
def write_squad2(job: Job) -> Written:
    """SQuAD 2.0: ``train-v2.0.json``, ``dev-v2.0.json``; questions may have no answer."""
    return _write(job, "2.0", "optional")


def _write(job: Job, version: str, answers: str) -> Written:
    files = {split: [name.format(version) for name in names] for split, names in _NAMES.items()}
    wanted = ", ".join(names[0] for names in files.values())
    lacks = f"none of the files of SQuAD {version}: {wanted} (or train.json, dev.json, test.json)"
    written = Written(kind=KIND)
    for split, path in find_splits(job.data_dir, files, lacks).items():
        # The answers of a test set are not for the one who trains; its file may lack them.
        written.splits.append(_write_split(job, split, path, "unknown" if split == "test" else answers, written.notes))
    return written


def _write_split(job: Job, split: str, path: Path, answers: str, notes: list[str]) -> SplitSummary:
    summary = SplitSummary(split, path)
    sample = Sample(path, job.dictionary, job.settings is not None)
    moved: list[str] = []
    with SplitWriter(job.dest, split, job.dictionary) as writer:
        questions, contexts = writer.symbols("input0"), writer.symbols("input1")
        offsets, texts, records = writer.column("input1", ".offsets"), writer.rows("input1"), writer.rows("label")
        for number, paragraph in enumerate(read_squad(path, answers, moved)):
            sample.add(paragraph.context)
            symbols, spans = encode_with_offsets(job.bpe, paragraph.context)
            contexts.add_item(writer.ids(symbols))
            offsets.add_item(np.asarray(spans, dtype=np.int32).reshape(-1))
            write_row(texts, paragraph.context)
            for question in paragraph.questions:
                questions.add_item(writer.ids(encode_with_offsets(job.bpe, question.text)[0]))
                found = [list(answer) for answer in question.answers]
                write_row(records, {"id": question.id, "context": number, "answers": found})
                summary.rows += 1
                if answers != "unknown":
                    summary.labels["answer" if question.answers else "no answer"] += 1
    sample.check(job.bpe)
    if moved:
        notes.append(
            f"{path}: {len(moved)} answers do not stand where the file says and were taken from the nearest place where"
            f" they do, the first in question {moved[0]!r}"
        )
    summary.tokens, summary.unknown = writer.tokens, writer.unknown
    return summary
