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
from pathlib import Path
from typing import Any

import numpy as np

from fairseq.data.encoders.base import encode_with_offsets
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import Job, SplitSummary, Written
from fairseq.finetune.reading import FORMATS, check_text, find_splits, place, read_json, read_rows, write_row
from fairseq.finetune.spans import QuestionRecord, Questions
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
        check_text(context, f"{path}, paragraph {number}")
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


def _list(container: Any, key: str, where: str) -> list[dict[str, Any]]:
    value = container.get(key) if isinstance(container, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where}: {key!r} must be a list of objects, as in SQuAD's files")
    return value


def _question(qa: dict[str, Any], context: str, path: Path, wanted: str, moved: list[str] | None) -> Question:
    identity, text = qa.get("id"), qa.get("question")
    if not isinstance(identity, str) or not isinstance(text, str):
        raise DataError(f"{path}: a question must have an 'id' and a 'question', both texts, but one is {qa!r:.120}")
    where = f"{path}, question {identity!r}"
    if not text.strip():
        raise DataError(f"{where}: the question is empty")
    check_text(text, where)
    if wanted == "unknown" or qa.get("is_impossible"):
        if wanted == "required":
            raise DataError(f"{where} is impossible, which SQuAD 1.1 does not know; use --task squad2")
        return Question(identity, text)
    spans = tuple(_answer(answer, context, where, identity, moved) for answer in _list(qa, "answers", where))
    if not spans and wanted == "required":
        raise DataError(f"{where} has no answer; if these are data of SQuAD 2.0, use --task squad2")
    return Question(identity, text, spans)


def _answer(answer: dict[str, Any], context: str, where: str, identity: str, moved: list[str] | None) -> Answer:
    text, start = answer.get("text"), answer.get("answer_start")
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise DataError(f"{where}: an answer must have a 'text' and an integer 'answer_start', but is {answer!r:.120}")
    if not text.strip():
        raise DataError(f"{where}: an answer is empty")
    if start < 0 or start + len(text) > len(context):
        raise DataError(
            f"{where}: the answer span [{start}, {start + len(text)}) is outside the context of {len(context)} characters"
        )
    if context.startswith(text, start):
        return text, start
    nearest = _nearest(text, start, context)
    if nearest is None:
        raise DataError(
            f"{where}: the answer span [{start}, {start + len(text)}) of the context reads "
            f"{context[start : start + len(text)]!r:.60}, not {text!r:.60}, which is nowhere in it"
        )
    if moved is not None:
        moved.append(identity)
    return text, nearest


def _nearest(text: str, start: int, context: str) -> int | None:
    """Where ``text`` stands in ``context`` nearest to ``start``."""
    found = [at for at in (context.rfind(text, 0, start + len(text)), context.find(text, start)) if at >= 0]
    return min(found, key=lambda at: abs(at - start), default=None)


def load_squad(directory: str | Path, split: str) -> Questions:
    """The preprocessed ``split``.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """
    prefixes = [Path(directory) / folder / split for folder in ("input0", "input1")]
    for prefix in prefixes:
        if not Path(f"{prefix}.idx").is_file():
            raise DataNotFoundError(
                f"Dataset not found: {split} ({prefix}); make it with fairseq-preprocess-task --task squad (or squad2)"
            )
    questions, contexts = (MMapIndexedDataset(str(prefix)) for prefix in prefixes)
    offsets = MMapIndexedDataset(f"{prefixes[1]}.offsets")
    if not np.array_equal(2 * contexts.sizes.astype(np.int64), offsets.sizes):
        raise DataError(f"{prefixes[1]}.offsets does not belong to {prefixes[1]}; preprocess the data again")
    path = Path(directory) / "label" / f"{split}.jsonl"
    rows = enumerate(read_rows(path, len(questions)), 1)
    records = [_record(row, len(contexts), place(path, line)) for line, row in rows]
    return Questions(records, questions, read_rows(Path(f"{prefixes[1]}.jsonl"), len(contexts)), contexts, offsets)


def _record(row: Any, contexts: int, where: str) -> QuestionRecord:
    try:
        answers = tuple((str(text), int(start)) for text, start in row["answers"])
        record = QuestionRecord(str(row["id"]), int(row["context"]), answers)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: {json.dumps(row)[:80]} is not a question; preprocess again") from None
    if not 0 <= record.context < contexts:
        raise DataError(f"{where}: there is no context {record.context}; preprocess the data again")
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
    flags = "--task question_answering --criterion question_answering"
    written = Written(kind=KIND, train_with=flags + (" --allow-no-answer" if answers == "optional" else ""))
    for split, path in find_splits(job.data_dir, files, lacks).items():
        # The answers of a test set are not for the one who trains; its file may lack them.
        written.splits.append(_write_split(job, split, path, "unknown" if split == "test" else answers, written.notes))
    return written


def _write_split(job: Job, split: str, path: Path, answers: str, notes: list[str]) -> SplitSummary:
    moved: list[str] = []
    with SplitWriter(job, split, path) as writer:
        questions, contexts = writer.symbols("input0"), writer.symbols("input1")
        offsets, texts, records = writer.column("input1", ".offsets"), writer.rows("input1"), writer.rows("label")
        for number, paragraph in enumerate(read_squad(path, answers, moved)):
            writer.sample.add(paragraph.context)
            symbols, spans = encode_with_offsets(job.bpe, paragraph.context)
            contexts.add_item(writer.ids(symbols))
            offsets.add_item(np.asarray(spans, dtype=np.int32).reshape(-1))
            write_row(texts, paragraph.context)
            for question in paragraph.questions:
                questions.add_item(writer.ids(encode_with_offsets(job.bpe, question.text)[0]))
                found = [list(answer) for answer in question.answers]
                write_row(records, {"id": question.id, "context": number, "answers": found})
                writer.summary.rows += 1
                if answers != "unknown":
                    writer.summary.labels["answer" if question.answers else "no answer"] += 1
    writer.sample.check()
    if moved:
        notes.append(
            f"{path}: {len(moved)} answers do not stand where the file says and were taken from the nearest place where"
            f" they do, the first in question {moved[0]!r}"
        )
    return writer.summary
