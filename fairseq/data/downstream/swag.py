"""SWAG (Zellers et al., 2018): CSV files with a sentence, the beginning of the next, and four ways to go on.

Written for the task ``multiple_choice`` with the context first: ``input0`` is the sentence (``sent1``), ``input1`` ...
``input4`` are the beginning (``sent2``) with each ending.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fairseq.data.downstream.choices import write_files
from fairseq.data.downstream.formats import FORMATS
from fairseq.data.downstream.layout import Example, Job, Written
from fairseq.data.downstream.reading import one_of, place, read_lines, squeeze
from fairseq.errors import DataError

ENDINGS = 4
_FILES = {"train": ("train.csv",), "valid": ("val.csv", "valid.csv", "dev.csv"), "test": ("test.csv",)}
_COLUMNS = ("sent1", "sent2", *(f"ending{k}" for k in range(ENDINGS)))


@FORMATS.register("swag")
def write(job: Job) -> Written:
    """Every split that is there."""
    return write_files(job, _FILES, read_rows, ENDINGS)


def read_rows(path: Path) -> Iterator[Example]:
    """The rows of a file; without a column ``label`` they have no label."""
    rows = csv.reader(text + "\n" for _, text in read_lines(path))
    header = next(rows, [])
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(f"{path}: the first line must name the columns, but {', '.join(missing)} is not among them")
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{place(path, rows.line_num)} has {len(row)} columns, but the first line has {len(header)}"
            )
        fields = dict(zip(header, row, strict=True))
        texts = [squeeze(f"{fields['sent2']} {fields[f'ending{k}']}") for k in range(ENDINGS)]
        label = None
        if "label" in fields:
            label = one_of(fields["label"].strip(), [str(k) for k in range(ENDINGS)], path, rows.line_num)
        yield Example(rows.line_num, (squeeze(fields["sent1"]), *texts), label)
