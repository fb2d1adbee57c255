"""Reading SQuAD's JSON, versions 1.1 and 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.data.downstream.reading import read_json
from fairseq.errors import DataError

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
        raise DataError(
            f"{place}: an answer must have a 'text' and a whole number 'answer_start', but is {answer!r:.120}"
        )
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
