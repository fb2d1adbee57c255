"""CommonsenseQA (Talmor et al., 2019): JSON lines with a question, its choices and the letter of the right one.

Written for the task ``multiple_choice`` with the context first: ``input0`` is ``Q: question``, ``input1`` ... are
``A: choice``, the wording of RoBERTa's recipe. (The old task ``commonsense_qa`` reads the JSON lines themselves.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fairseq.data.downstream.choices import entry, letter, strings, write_files
from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import Example, Job, Written
from fairseq.data.downstream.reading import parse_json, read_lines, squeeze

CHOICES = 5
_FILES = {
    "train": ("train_rand_split.jsonl", "train.jsonl"),
    "valid": ("dev_rand_split.jsonl", "valid.jsonl", "dev.jsonl"),
    "test": ("test_rand_split_no_answers.jsonl", "test.jsonl"),
}


@FORMATS.register("commonsense_qa")
def write(job: Job) -> Written:
    """Every split that is there."""
    return write_files(job, _FILES, read_questions, CHOICES)


def read_questions(path: Path) -> Iterator[Example]:
    """The questions of a file; without ``answerKey`` they have no label."""
    for line, text in read_lines(path):
        if not text.strip():
            continue
        row = parse_json(text, path, line)
        question = entry(row, "question", dict, path, line)
        stem = entry(question, "stem", str, path, line)
        choices = [entry(choice, "text", str, path, line) for choice in entry(question, "choices", list, path, line)]
        texts = [f"A: {squeeze(choice)}" for choice in strings(choices, CHOICES, "choices", path, line)]
        answer = row.get("answerKey")
        label = None if answer is None or answer == "" else letter(answer, CHOICES, path, line)
        yield Example(line, (f"Q: {squeeze(stem)}", *texts), label)
