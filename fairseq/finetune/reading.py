"""Reading the files of downstream datasets (mistakes name their place), and the table of formats. Free of torch.

A format of ``fairseq-preprocess-task`` is a function ``write(job: Job) -> Written`` (see `fairseq.finetune.layout`)
that registers itself::

    @FORMATS.register("race")
    def write_race(job: Job) -> Written: ...

``Builtin`` may name a dataclass of options of its own (the decorator names it too); they become flags, and
``job.options`` is its instance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fairseq.data import manifest
from fairseq.data.encoders.guard import check_text_length
from fairseq.data.text import LONGEST_LINE, json_value, refuse_long_line
from fairseq.dataclass.base import FairseqDataclass, option
from fairseq.errors import DataError, DataNotFoundError
from fairseq.registry import Builtin, Registry

_BOM = b"\xef\xbb\xbf"


def place(path: Path, line: int) -> str:
    """``path, line 7``, as all messages say it."""
    return f"{path}, line {line}" if line else str(path)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line; a byte-order mark and CRLF ends are taken away.

    Only ``\\n`` separates lines; a lone ``\\r`` inside one becomes a space. Raises DataNotFoundError, or DataError for
    bytes that are not UTF-8.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataNotFoundError(f"file not found: {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    with handle:
        yield from decode_lines(handle, path)


def decode_lines(handle: Iterable[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """`read_lines` of an open binary file, which messages call ``path``."""
    for number, raw in enumerate(handle, 1):
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if len(raw) > LONGEST_LINE:
            refuse_long_line(path)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place(path, number)} is not UTF-8 text ({error.reason}); convert the file") from None
        yield number, text.rstrip("\r\n").replace("\r", " ")


def read_json(path: Path) -> Any:
    """The one JSON value of a file."""
    text = "\n".join(line for _, line in read_lines(path))
    return parse_json(text, path, 0)


def parse_json(text: str, path: Path, line: int) -> Any:
    """The JSON value ``text``, which stands in ``line`` of ``path`` (0: the whole file)."""
    try:
        return json_value(text)
    except ValueError as error:
        where = place(path, line or getattr(error, "lineno", 0))
        raise DataError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from None


def numbers(text: str, where: str) -> list[float]:
    """The finite numbers of a label. Raises DataError when there is none or one is not a number."""
    values = []
    for word in text.split():
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: a regression label must be a finite number, but is {word!r}")
        values.append(value)
    if not values:
        raise DataError(f"{where}: the label is missing; a regression label is a number")
    return values


def one_of(label: str, labels: Sequence[str], where: str) -> str:
    """``label`` if it is one of ``labels``, else DataError."""
    if label in labels:
        return label
    problem = f"unknown label {label!r}" if label.strip() else "the label is missing"
    raise DataError(f"{where}: {problem}; expected one of {', '.join(labels)}")


def check_text(text: str, where: str) -> None:
    """Raise DataError, saying ``where``, for a text that is too long to encode."""
    try:
        check_text_length(text)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def squeeze(text: str) -> str:
    """``text`` on one line, with single spaces."""
    return " ".join(text.split())


def first_existing(directory: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that is a file in ``directory``."""
    return next((directory / name for name in names if (directory / name).is_file()), None)


def find_splits(directory: Path, names: Mapping[str, Sequence[str]], lacks: str) -> dict[str, Path]:
    """The file of every split of which ``directory`` has one of the ``names``.

    Raises DataNotFoundError, saying what it ``lacks``, when there is none.
    """
    found = {split: path for split, files in names.items() if (path := first_existing(directory, files))}
    if not found:
        raise DataNotFoundError(f"{directory} has {lacks}")
    return found


def write_row(handle: IO[str], value: Any) -> None:
    """Write ``value`` as one line."""
    handle.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_rows(path: Path, expected: int) -> list[Any]:
    """The values of ``path``, which must be as many as ``expected``.

    Raises DataNotFoundError when it is missing, DataError naming the line that is not JSON.
    """
    manifest.check_opened_text(path)
    try:
        rows = [parse_json(line, path, number) for number, line in read_lines(path)]
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} is missing; preprocess the data again") from None
    if len(rows) != expected:
        raise DataError(f"{path} has {len(rows)} lines, but {expected} belong to the data; preprocess them again")
    return rows


_HERE = "fairseq.finetune"

FORMATS: Registry[Any] = Registry(
    "task",
    {
        "plain": Builtin(f"{_HERE}.glue_files", f"{_HERE}.reading:PlainConfig"),
        "sentence_prediction": Builtin(f"{_HERE}.glue_files", f"{_HERE}.reading:PlainConfig"),
        "glue": Builtin(f"{_HERE}.glue_files"),
        "race": Builtin(f"{_HERE}.choices"),
        "commonsense_qa": Builtin(f"{_HERE}.choices"),
        "swag": Builtin(f"{_HERE}.choices"),
        "squad": Builtin(f"{_HERE}.squad"),
        "squad2": Builtin(f"{_HERE}.squad"),
        "conll": Builtin(f"{_HERE}.conll", f"{_HERE}.reading:ConllConfig"),
    },
    refused=dict.fromkeys(
        ("wsc", "winogrande", "WSC", "disambiguate_pronoun"), "Winograd schemas (pronoun disambiguation)"
    ),
)


@dataclass(kw_only=True)
class PlainConfig(FairseqDataclass):
    """Files with one text or label a line."""

    regression_target: bool = option(False, "plain: labels are numbers (one or more a line), not names of classes")
    multi_label: bool = option(False, "plain: a line may have several labels, separated by spaces, or none", new=True)
    divide_labels_by: float = option(1.0, "plain: divide the numbers of --regression-target by this", new=True)


@dataclass(kw_only=True)
class ConllConfig(FairseqDataclass):
    """Files of columns."""

    word_column: int = option(0, "conll: column of the words, counted from 0, or from the end when negative")
    label_column: int = option(-1, "conll: column of the labels, likewise")
