"""RACE (Lai et al., 2017): ``{train,dev,test}/{middle,high}/*.txt``, each file one article with its questions as JSON.

Written for the task ``sentence_ranking``: the article is ``input0``, the question with each of the four options is
``input1`` ... ``input4``. Test sets: ``test`` is the middle schools', ``test1`` the high schools'. Articles come sorted by
level (middle first) and number, where the original took them in the order of the file system.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fairseq.data.downstream.choices import entry, letter, strings, write_choices
from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import Example, Job, Split, Written
from fairseq.data.downstream.reading import place, read_json, required_directory, squeeze
from fairseq.errors import DataError, DataNotFoundError

OPTIONS = 4
_SPLITS = {
    "train": ("train/middle", "train/high"),
    "valid": ("dev/middle", "dev/high"),
    "test": ("test/middle",),
    "test1": ("test/high",),
}


@FORMATS.register("race")
def write(job: Job) -> Written:
    """Every split that is there."""
    required_directory(job.data_dir, "RACE's folders train, dev and test")
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
    content = read_json(path)
    article = squeeze(entry(content, "article", str, path, 0))
    questions = entry(content, "questions", list, path, 0)
    options, answers = entry(content, "options", list, path, 0), entry(content, "answers", list, path, 0)
    if not len(questions) == len(options) == len(answers):
        raise DataError(
            f"{place(path, 0)}: {len(questions)} questions, {len(options)} options and {len(answers)} answers"
        )
    for number, (question, candidates, answer) in enumerate(zip(questions, options, answers, strict=True), 1):
        if not isinstance(question, str) or not isinstance(candidates, list):
            raise DataError(f"{path}: question {number} is no text with a list of options")
        texts = [fill(question, text) for text in strings(candidates, OPTIONS, "options", path, 0)]
        yield Example(0, (article, *texts), letter(answer, OPTIONS, path, 0), path)


def fill(question: str, candidate: str) -> str:
    """The candidate in the blanks (``_``) of the question, or after it when there are none."""
    return squeeze(question.replace("_", candidate) if "_" in question else f"{question} {candidate}")
