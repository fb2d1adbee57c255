"""The data of each task: raw GLUE files to the layout of the fine-tuning tasks, once for all runs.

``DIR/data/RTE`` holds what `fairseq.finetune` writes, and ``data.json``: what it was made from, rows, labels.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.data.dictionary import Dictionary
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune import glue_files
from fairseq.finetune.glue_files import GlueTask
from fairseq.finetune.layout import Job
from fairseq.finetune.reading import first_existing
from fairseq.glue.files import fingerprint, remove_made, stored_json, write_json
from fairseq.glue.pretrained import PretrainedModel, digest

NOT_IN_ALL = ("WNLI",)  # as in the original: its development set misleads, but it can be asked for by name
SUBSET_SEED = 1


@dataclass(frozen=True)
class TaskData:
    """Preprocessed data of one task. ``labels``: split -> label -> rows; for numbers only the count is of use."""

    task: str
    path: Path
    digest: str
    rows: dict[str, int]
    labels: dict[str, dict[str, int]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def unknown(cls, task: str) -> TaskData:
        """Stands for data that is not preprocessed yet, of some size."""
        return cls(task, Path(), "", {"train": 1000, "valid": 100}, {"valid": {}})

    def valid_subsets(self) -> list[str]:
        return [name for name in ("valid", "valid1") if name in self.rows]


def choose(names: Sequence[str], data_dir: Path) -> tuple[list[GlueTask], list[str]]:
    """The tasks to run, and for ``all`` the names of those that are missing, each with the reason.

    Raises ConfigError for an unknown name, and DataNotFoundError for a task that was asked for and is not there.
    """
    if not data_dir.is_dir():
        raise DataNotFoundError(f"--data-dir {data_dir} does not exist; it should hold GLUE's folders (CoLA, RTE, ...)")
    wanted: dict[str, GlueTask] = {}
    missing: list[str] = []
    for name in names:
        everything = name.lower() == "all"
        for task in glue_files.TASKS.values() if everything else [glue_files.find_task(name)]:
            if everything and (not task.trains or task.name in NOT_IN_ALL):
                continue
            if not task.trains:
                raise DataNotFoundError(
                    f"{task.name} is only a test set and has nothing to train on; leave it out of --tasks"
                )
            reason = _absent(task, data_dir)
            if reason is None:
                wanted[task.name] = task
            elif everything:
                missing.append(f"{task.name} ({reason})")
            else:
                raise DataNotFoundError(f"task {task.name} is not in --data-dir {data_dir}: {reason}")
    if not wanted:
        raise DataNotFoundError(f"--data-dir {data_dir} holds none of GLUE's tasks: {', '.join(missing)}")
    return list(wanted.values()), missing


def _absent(task: GlueTask, data_dir: Path) -> str | None:
    """Why ``task`` cannot run on ``data_dir``, None when it can."""
    folder = glue_files.task_directory(data_dir, task)
    if folder is None:
        return f"no folder {task.name}"
    if any(first_existing(folder, split.files) for split in task.splits):
        lists_dev = task.name == "MRPC" and (folder / "dev_ids.tsv").is_file()
        for split in task.splits[: 1 if lists_dev else 2]:
            if first_existing(folder, split.files) is None:
                return f"no {split.files[0]}"
    return None


class Preparation:
    """Preprocesses the tasks of one command; ``examples`` caps the training rows (a fixed random choice of them)."""

    def __init__(
        self, start: PretrainedModel, data_dir: Path, out: Path, examples: int | None = None, workers: int = 1
    ) -> None:
        self.start, self.data_dir, self.out = start, data_dir, out
        self.examples, self.workers = examples, workers
        self._dictionary = Dictionary.load(str(start.dictionary))
        symbols = len(self._dictionary) + (not start.omit_mask and "<mask>" not in self._dictionary)
        if start.symbols is not None and symbols != start.symbols:
            raise DataError(
                f"{start.dictionary} has {symbols} symbols (with <mask>), but {start.path} has embeddings of {start.symbols}; "
                "give the dict.txt that it was pretrained with by --dict"
            )

    def identity(self, task: GlueTask) -> dict[str, Any]:
        """What the data of ``task`` is made from."""
        folder = glue_files.task_directory(self.data_dir, task)
        assert folder is not None
        names = {name for split in task.splits for name in split.files}
        files = sorted(path for path in folder.iterdir() if path.is_file())
        bpe = {
            key: digest(Path(value)) if isinstance(value, str) and Path(value).is_file() else value
            for key, value in (self.start.bpe or {}).items()
        }
        return {
            "task": task.name,
            "files": {path.name: digest(path) for path in files if folder != self.data_dir or path.name in names},
            "dictionary": digest(self.start.dictionary),
            "bpe": bpe,
            "train_examples": self.examples,
        }

    def find(self, task: GlueTask) -> TaskData | None:
        """The data that is there already, if it was made from the same."""
        path = self.out / task.name
        stored = stored_json(path / "data.json")
        try:
            return _task_data(path, stored) if stored["identity"] == self.identity(task) else None
        except (KeyError, TypeError):  # there is none, or it is damaged
            return None

    def make(self, task: GlueTask) -> TaskData:
        """Preprocess ``task``; the directory appears at once and in full."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / task.name
        for left in self.out.glob(".making-*"):  # by a command that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".making-") as scratch:
            made = Path(scratch) / task.name
            made.mkdir()
            source, bpe = self.data_dir, self.start.bpe
            if self.examples is not None and task.trains:
                source = self._fewer_rows(task, self.examples, Path(scratch))
            job = Job(
                source,
                made,
                self._dictionary,
                argparse.Namespace(bpe=bpe["_name"], **bpe) if bpe else None,
                workers=self.workers,
                variant=task.name,
                keep_empty=True,
            )
            written = glue_files.write_glue(job)
            stored = {
                "identity": self.identity(task),
                "rows": {split.name: split.rows for split in written.splits},
                "labels": {
                    split.name: {} if task.regression else dict(sorted(split.labels.items()))
                    for split in written.splits
                },
                "notes": [note.replace(str(scratch), str(self.data_dir)) for note in written.notes],
            }
            write_json(made / "data.json", stored)
            remove_made(path, "data.json")
            made.rename(path)
        return _task_data(path, stored)

    def _fewer_rows(self, task: GlueTask, examples: int, scratch: Path) -> Path:
        """A copy of the raw files with at most ``examples`` training rows, in their old order."""
        folder = glue_files.task_directory(self.data_dir, task)
        train = first_existing(folder, task.splits[0].files) if folder is not None else None
        if folder is None or train is None:
            raise DataNotFoundError(f"--train-examples needs the raw files of {task.name} in {self.data_dir}")
        copy = scratch / "raw" / task.name
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            if path.is_file() and path != train:
                (copy / path.name).symlink_to(path.resolve())
        with train.open("rb") as handle:  # lines end with "\n" alone: the texts hold other line separators
            lines = handle.readlines()
        first = 1 if task.splits[0].header else 0
        rows = range(first, len(lines))
        chosen = sorted(random.Random(SUBSET_SEED).sample(rows, min(examples, len(rows))))
        (copy / train.name).write_bytes(b"".join([*lines[:first], *(lines[row] for row in chosen)]))
        return scratch / "raw"


def _task_data(path: Path, stored: dict[str, Any]) -> TaskData:
    identity = stored["identity"]
    return TaskData(identity["task"], path, fingerprint(identity), stored["rows"], stored["labels"], stored["notes"])
