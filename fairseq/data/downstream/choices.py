"""What data sets of multiple choice have in common: ``input0`` is the context, ``input1`` ... are the candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.data.downstream.layout import CHOICES, Example, Job, Split, Written
from fairseq.data.downstream.layout import write as write_layout
from fairseq.data.downstream.reading import first_existing, place, required_directory
from fairseq.errors import DataError, DataNotFoundError


def write_choices(job: Job, splits: Iterable[Split], candidates: int, task: str) -> Written:
    """Write ``splits``, whose labels are the number of the right candidate from 0; ``task`` are flags for training."""
    written = write_layout(job, splits, CHOICES)
    written.train_with = f"{task} --criterion sentence_ranking --num-classes {candidates}"
    return written


def write_files(
    job: Job, files: Mapping[str, Sequence[str]], read: Callable[[Path], Iterator[Example]], candidates: int
) -> Written:
    """Write every split of which ``job.data_dir`` has one of the ``files``, for ``multiple_choice``, the context first.

    Raises DataNotFoundError when it has none of them.
    """
    required_directory(job.data_dir, " and ".join(names[0] for names in files.values()))
    found = {name: first_existing(job.data_dir, names) for name, names in files.items()}
    splits = [Split(name, path, read(path)) for name, path in found.items() if path is not None]
    if not splits:
        known = ", ".join(name for names in files.values() for name in names)
        raise DataNotFoundError(f"{job.data_dir} has none of {known}")
    return write_choices(job, splits, candidates, "--task multiple_choice --context-first")


def letter(answer: Any, candidates: int, path: Path, line: int) -> str:
    """The number of the answer ``A``, ``B``, ... as text."""
    known = [chr(ord("A") + k) for k in range(candidates)]
    if answer not in known:
        raise DataError(f"{place(path, line)}: unknown answer {answer!r}; expected one of {', '.join(known)}")
    return str(known.index(answer))


def entry(value: Any, key: str, kind: type, path: Path, line: int) -> Any:
    """``value[key]``, which must be a ``kind``. Raises DataError naming the key and the place."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise DataError(
            f"{place(path, line)}: expected a JSON object with {key!r} ({kind.__name__}), not {str(value)[:80]}"
        )
    return found


def strings(values: list[Any], count: int, key: str, path: Path, line: int) -> list[str]:
    """``values`` if they are ``count`` strings, else DataError."""
    if len(values) != count or not all(isinstance(value, str) for value in values):
        raise DataError(f"{place(path, line)}: {key!r} must have {count} texts, but has {len(values)}")
    return values
