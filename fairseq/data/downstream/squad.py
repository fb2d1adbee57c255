"""``fairseq-preprocess-task --task squad`` and ``squad2``: SQuAD's JSON in, the layout of `squad_layout` out."""

from __future__ import annotations

from pathlib import Path

from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import Job, SplitSummary, Written
from fairseq.data.downstream.reading import first_existing
from fairseq.data.downstream.sample import Sample
from fairseq.data.downstream.squad_json import read_squad
from fairseq.data.downstream.squad_layout import SquadWriter
from fairseq.data.encoders.offsets import encode_with_offsets
from fairseq.errors import DataNotFoundError

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
    files = _files(job.data_dir, version)
    written = Written(kind=KIND)
    for split, path in files.items():
        # The answers of a test set are not for the one who trains; its file may lack them.
        written.splits.append(_write_split(job, split, path, "unknown" if split == "test" else answers, written.notes))
    return written


def _files(directory: Path, version: str) -> dict[str, Path]:
    found = {}
    for split, names in _NAMES.items():
        path = first_existing(directory, [name.format(version) for name in names])
        if path is not None:
            found[split] = path
    if not found:
        wanted = ", ".join(names[0].format(version) for names in _NAMES.values())
        raise DataNotFoundError(
            f"{directory} has none of the files of SQuAD {version}: {wanted} (or train.json, dev.json, test.json)"
        )
    return found


def _write_split(job: Job, split: str, path: Path, answers: str, notes: list[str]) -> SplitSummary:
    summary = SplitSummary(split, path)
    sample = Sample(path, job.dictionary, job.settings is not None)
    moved: list[str] = []
    with SquadWriter(job.dest, split, job.dictionary) as writer:
        for paragraph in read_squad(path, answers, moved):
            sample.add(paragraph.context)
            writer.add_context(paragraph.context, *encode_with_offsets(job.bpe, paragraph.context))
            for question in paragraph.questions:
                writer.add_question(question, encode_with_offsets(job.bpe, question.text)[0])
                if answers != "unknown":
                    summary.labels["answer" if question.answers else "no answer"] += 1
    sample.check(job.bpe)
    if moved:
        notes.append(
            f"{path}: {len(moved)} answers do not stand where the file says and were taken from the nearest place where"
            f" they do, the first in question {moved[0]!r}"
        )
    summary.rows, summary.tokens, summary.unknown = writer.questions, writer.tokens, writer.unknown
    return summary
