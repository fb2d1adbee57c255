"""Files of one JSON value a line, beside binarised data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from fairseq.data.downstream.reading import parse_json
from fairseq.errors import DataError, DataNotFoundError


def write_row(handle: IO[str], value: Any) -> None:
    """Write ``value`` as one line."""
    handle.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_rows(path: Path, expected: int) -> list[Any]:
    """The values of ``path``, which must be as many as ``expected``.

    Raises DataNotFoundError when it is missing, DataError naming the line that is not JSON.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as handle:
            rows = [parse_json(line, path, number) for number, line in enumerate(handle, 1)]
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} is missing; preprocess the data again") from None
    if len(rows) != expected:
        raise DataError(f"{path} has {len(rows)} lines, but {expected} belong to the data; preprocess them again")
    return rows
