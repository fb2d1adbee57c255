"""Datasets of multiple choice: ``input0`` is the context, ``input1`` ... are the candidates.

* RACE (Lai et al., 2017): ``{train,dev,test}/{middle,high}/*.txt``, each file one article with its questions as JSON.
  For the task ``sentence_ranking``: the article is ``input0``, the question with each of the four options is
  ``input1`` ... ``input4``. Test sets: ``test`` is the middle schools', ``test1`` the high schools'. Articles come
  sorted by level (middle first) and number, where the original took them in the order of the file system.
* SWAG (Zellers et al., 2018): CSV files with a sentence, the beginning of the next, and four ways to go on. For the
  task ``multiple_choice`` with the context first: ``input0`` is the sentence (``sent1``), ``input1`` ... ``input4``
  are the beginning (``sent2``) with each ending.
* CommonsenseQA (Talmor et al., 2019): JSON lines with a question, its choices and the letter of the right one. For
  the task ``multiple_choice`` with the context first: ``input0`` is ``Q: question``, ``input1`` ... are
  ``A: choice``, the wording of RoBERTa's recipe. (The old task ``commonsense_qa`` reads the JSON lines themselves.)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairseq.data.text import LONGEST_LINE
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import CHOICES, JOINED, Example, Job, Split, Written
from fairseq.finetune.layout import write as write_layout
from fairseq.finetune.reading import (
    FORMATS,
    find_splits,
    one_of,
    parse_json,
    place,
    read_json,
    read_lines,
    squeeze,
)


def write_choices(job: Job, splits: Iterable[Split], candidates: int, task: str) -> Written:
    """Write ``splits``, whose labels are the number of the right candidate from 0; ``task`` are flags for training."""
    written = write_layout(job, splits, CHOICES)
    written.train_with = f"{task} --criterion sentence_ranking --num-classes {candidates} {JOINED}"
    return written


def write_files(
    job: Job, files: Mapping[str, Sequence[str]], read: Callable[[Path], Iterator[Example]], candidates: int
) -> Written:
    """Write every split of which ``job.data_dir`` has one of the ``files``, for ``multiple_choice``, the context first.

    Raises DataNotFoundError when it has none of them.
    """
    known = ", ".join(name for names in files.values() for name in names)
    found = find_splits(job.data_dir, files, f"none of {known}")
    splits = [Split(name, path, map(_squeezed, read(path))) for name, path in found.items()]
    return write_choices(job, splits, candidates, "--task multiple_choice --context-first")


def _squeezed(example: Example) -> Example:
    return replace(example, texts=tuple(map(squeeze, example.texts)))


def letter(answer: Any, candidates: int, where: str) -> str:
    """The number of the answer ``A``, ``B``, ... as text."""
    known = [chr(ord("A") + k) for k in range(candidates)]
    return str(known.index(one_of(str(answer), known, where)))


def entry(value: Any, key: str, kind: type, where: str) -> Any:
    """``value[key]``, which must be a ``kind``. Raises DataError naming the key and the place."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise DataError(f"{where}: expected a JSON object with {key!r} ({kind.__name__}), not {str(value)[:80]}")
    return found


def strings(values: list[Any], count: int, key: str, where: str) -> list[str]:
    """``values`` if they are ``count`` strings, else DataError."""
    if len(values) != count or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: {key!r} must have {count} texts, but has {len(values)}")
    return values


OPTIONS = 4
_SPLITS = {
    "train": ("train/middle", "train/high"),
    "valid": ("dev/middle", "dev/high"),
    "test": ("test/middle",),
    "test1": ("test/high",),
}


@FORMATS.register("race")
def write_race(job: Job) -> Written:
    """Every split that is there."""
    splits = []
    for name, folders in _SPLITS.items():
        files = [file for folder in folders for file in sorted((job.data_dir / folder).glob("*.txt"), key=_number)]
        if files:
            home = job.data_dir / folders[0].partition("/")[0]
            splits.append(Split(name, home, (example for file in files for example in read_article(file))))
    if not splits:
        raise DataNotFoundError(f"{job.data_dir} has no articles such as train/middle/1.txt")
    return write_choices(job, splits, OPTIONS, "--task sentence_ranking")


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0, path.name)


def read_article(path: Path) -> Iterator[Example]:
    """The questions of one file; ``line`` is the number of the question."""
    content, where = read_json(path), str(path)
    article = squeeze(entry(content, "article", str, where))
    questions, options, answers = (entry(content, key, list, where) for key in ("questions", "options", "answers"))
    if not len(questions) == len(options) == len(answers):
        raise DataError(f"{path}: {len(questions)} questions, {len(options)} options and {len(answers)} answers")
    for number, (question, candidates, answer) in enumerate(zip(questions, options, answers, strict=True), 1):
        if not isinstance(question, str) or not isinstance(candidates, list):
            raise DataError(f"{path}: question {number} is not a text with a list of options")
        texts = [fill_question(question, text) for text in strings(candidates, OPTIONS, "options", where)]
        yield Example(0, (article, *texts), letter(answer, OPTIONS, where), path)


def fill_question(question: str, candidate: str) -> str:
    """The candidate in the blanks (``_``) of the question, or after it when there are none."""
    return squeeze(question.replace("_", candidate) if "_" in question else f"{question} {candidate}")


ENDINGS = 4
_SWAG_FILES = {"train": ("train.csv",), "valid": ("val.csv", "valid.csv", "dev.csv"), "test": ("test.csv",)}
_COLUMNS = ("sent1", "sent2", *(f"ending{k}" for k in range(ENDINGS)))


@FORMATS.register("swag")
def write_swag(job: Job) -> Written:
    """Every split that is there."""
    return write_files(job, _SWAG_FILES, read_examples, ENDINGS)


def read_examples(path: Path) -> Iterator[Example]:
    """The rows of a file; without a column ``label`` they have no label."""
    rows = _csv_rows(path)
    _, header = next(rows, (0, []))
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(f"{path}: the first line must name the columns, but {', '.join(missing)} is not among them")
    for number, row in rows:
        where = place(path, number)
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} columns, but the first line has {len(header)}")
        fields = dict(zip(header, row, strict=True))
        texts = [f"{fields['sent2']} {fields[f'ending{k}']}" for k in range(ENDINGS)]
        label = None
        if "label" in fields:
            label = one_of(fields["label"].strip(), [str(k) for k in range(ENDINGS)], where)
        yield Example(number, (fields["sent1"], *texts), label)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, fields) of every row. Raises DataError naming the line."""
    csv.field_size_limit(LONGEST_LINE)  # of the process; 128 kB otherwise
    rows = csv.reader(text + "\n" for _, text in read_lines(path))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{place(path, rows.line_num)} is not CSV: {error}") from None


COMMONSENSE_CHOICES = 5
_COMMONSENSE_FILES = {
    "train": ("train_rand_split.jsonl", "train.jsonl"),
    "valid": ("dev_rand_split.jsonl", "valid.jsonl", "dev.jsonl"),
    "test": ("test_rand_split_no_answers.jsonl", "test.jsonl"),
}


@FORMATS.register("commonsense_qa")
def write_commonsense_qa(job: Job) -> Written:
    """Every split that is there."""
    return write_files(job, _COMMONSENSE_FILES, read_questions, COMMONSENSE_CHOICES)


def read_questions(path: Path, candidates: int = COMMONSENSE_CHOICES) -> Iterator[Example]:
    """The questions of a file, each with so many ``candidates``; without ``answerKey`` they have no label."""
    for line, text in read_lines(path):
        if not text.strip():
            continue
        row, where = parse_json(text, path, line), place(path, line)
        question = entry(row, "question", dict, where)
        stem = entry(question, "stem", str, where)
        choices = [entry(choice, "text", str, where) for choice in entry(question, "choices", list, where)]
        texts = [f"A: {choice}" for choice in strings(choices, candidates, "choices", where)]
        answer = row.get("answerKey")
        yield Example(line, (f"Q: {stem}", *texts), letter(answer, candidates, where) if answer else None)
