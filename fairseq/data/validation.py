"""Checking preprocessed data against their manifest and in themselves: what ``fairseq-validate-data`` does. Free of torch.

Files are read once, in blocks: the checksum, the range of the ids and the ends of the lines come out of one pass.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data import manifest
from fairseq.data.dictionary import Dictionary
from fairseq.data.item_ends import ItemEnds, Items
from fairseq.errors import DataError, FairseqError

_BLOCK = 1 << 22  # bytes; whole tokens of every type
_RAW = re.compile(r"(train|valid|test)\d*(\.\w+-\w+\.\w+)?")  # of --dataset-impl raw
SAME, DIFFERS, NOT_LISTED = "same", "differs", "not listed"
_TEXTS = (".jsonl", ".label")
_MEANING = "; ids are numbers of its lines: below a line that was added, removed or moved they mean other symbols now"
_EOS = 2  # of every dictionary
_MOSTLY = 0.9  # of all lines end with </s>: then all should

Progress = Callable[[int], object]


@dataclass
class Row:
    """A line of the table: what was found in a dataset, a dictionary or a text."""

    name: str
    items: int | None = None
    tokens: int | None = None
    empty: int | None = None
    dtype: str = ""
    highest: int | None = None
    agrees: str = ""


@dataclass
class FolderReport:
    """What was found in ``folder``; ``files`` are the names of all data files in it and ``read`` their bytes.

    ``changed`` of the ``problems`` are differences from the manifest.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    changed: int = 0
    read: int = 0

    def counts(self, split: str) -> dict[str, int]:
        """Items or lines of every column of ``split``: ``""`` is the dataset itself, others are ``.words``, ``.jsonl``, ..."""
        found = ((row.name.removeprefix(split), row.items) for row in self.rows if row.name.startswith(split))
        return {column: items for column, items in found if items is not None and (not column or column[0] == ".")}

    @property
    def splits(self) -> list[str]:
        return sorted({row.name.partition(".")[0] for row in self.rows if not manifest.is_dictionary(row.name)})


def data_files(folder: Path) -> list[str]:
    """The names of the data files in ``folder``: those that a manifest describes."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and (path.suffix in (".bin", ".idx", *_TEXTS) or manifest.is_dictionary(path.name) or _RAW.fullmatch(path.name))
    )


def data_folders(directory: Path) -> list[Path]:
    """``directory`` and the folders in it, links too, as far as they hold data, in the order of their names."""
    found, seen = [], set()
    for place, names, files in os.walk(directory, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        folder = Path(place)
        if folder.resolve() in seen:  # a link to a folder above it, for example
            names.clear()
            continue
        seen.add(folder.resolve())
        indexed = any(name.endswith((".idx", ".bin")) or manifest.is_dictionary(name) for name in files)
        if indexed or manifest.NAME in files or (files and folder.name == "label" and data_files(folder)):
            found.append(folder)
    return found


def check_folder(folder: Path, advance: Progress, against_manifest: bool = True) -> FolderReport:
    """Check all data in ``folder``; ``advance`` is told the bytes that were read. What is wrong is in the report."""
    report = FolderReport(folder, data_files(folder))
    checker = _Checker(report, advance)
    for name in filter(manifest.is_dictionary, report.files):
        checker.dictionary(name)
    stems = {name[:-4] for name in report.files if name.endswith((".bin", ".idx"))}
    for stem in sorted(stems):
        checker.dataset(stem)
    for name in report.files:
        if name.endswith(_TEXTS) or (_RAW.fullmatch(name) and name not in stems):
            checker.text(name)
    _check_columns(report)
    if against_manifest:
        _compare(report)
    return report


def check_together(reports: list[FolderReport]) -> list[str]:
    """Problems of folders that belong together: ``input0``, ``input1``, ... and ``label`` of one directory."""
    problems = []
    for first in (report for report in reports if report.folder.name == "input0"):
        beside = {report.folder.name: report for report in reports if report.folder.parent == first.folder.parent}
        for split in first.splits:
            number = first.counts(split).get("")
            labels = beside["label"].counts(split) if "label" in beside else {}
            pairs: list[tuple[str, str, int | None]] = [("label", name, count) for name, count in labels.items()]
            if ".jsonl" not in labels:  # of questions, whose contexts are stored once
                inputs = sorted(name for name in beside if re.fullmatch(r"input[1-9]\d*", name))
                pairs += [(name, "", beside[name].counts(split).get("")) for name in inputs]
            for folder, column, count in pairs:
                if count != number:
                    path = beside[folder].folder / f"{split}{column}"
                    has = "is missing" if count is None else f"has {count:,} lines"
                    problems.append(
                        f"{path} {has}, but {first.folder / split} has {number or 0:,}: line k belongs to line k"
                    )
    return problems


class _Checker:
    """Checks one file after the other and writes into ``report``."""

    def __init__(self, report: FolderReport, advance: Progress) -> None:
        self._report, self._advance = report, advance
        self._sizes: dict[str, int] = {}  # symbols of the dictionaries that can be read

    def dictionary(self, name: str) -> None:
        _drain(self._blocks(name))
        row = self._row(name)
        try:
            self._sizes[name] = len(Dictionary.load(self._report.folder / name))
            row.items = self._sizes[name]
        except FairseqError as error:
            self._problem(str(error))

    def text(self, name: str) -> None:
        lines, last = 0, b"\n"
        for block in self._blocks(name):
            lines += block.count(b"\n")
            last = block[-1:]
        self._row(name).items = lines + (last != b"\n")

    def dataset(self, stem: str) -> None:
        index, data = (self._report.folder / f"{stem}{suffix}" for suffix in (".idx", ".bin"))
        there = [path for path in (index, data) if path.is_file()]
        if len(there) < 2:
            absent = data if there == [index] else index
            self._problem(f"{there[0]} is there, but {absent.name} is not: neither can be read without the other")
            return
        row = self._row(stem)
        _drain(self._blocks(index.name))
        try:
            items = Items.read(str(index), data.stat().st_size)
            if items.dtype.kind not in "iu":
                raise DataError(
                    f"{index} says that tokens are {items.dtype}, but ids are integers; preprocess the data again"
                )
        except DataError as error:
            self._problem(str(error))
            _drain(self._blocks(data.name))
            return
        row.items, row.tokens, row.dtype = (
            len(items.sizes),
            data.stat().st_size // items.dtype.itemsize,
            items.dtype.name,
        )
        self._tokens(self._report.folder / stem, items, row)

    def _tokens(self, path: Path, items: Items, row: Row) -> None:
        """The pass over the tokens of a dataset."""
        lowest, highest, position, ended, odd = 0, -1, 0, 0, -1
        ends = ItemEnds(items.sizes)
        for block in self._blocks(f"{path.name}.bin"):
            tokens: npt.NDArray[Any] = np.frombuffer(block, dtype=items.dtype)
            lowest = min(lowest, int(tokens.min()) - items.shift)
            highest = max(highest, int(tokens.max()) - items.shift)
            numbers, places = ends.before(position + len(tokens))
            is_end = tokens[places - position] == _EOS + items.shift
            ended += int(np.count_nonzero(is_end))
            if odd < 0 and not is_end.all():
                odd = int(numbers[is_end.argmin()])
            position += len(tokens)
        ends.before(position + 1)  # items without tokens at the end
        row.highest = highest if position else None
        if lowest < 0:
            self._problem(f"{path}.bin holds the negative number {lowest}")
        own = manifest.dictionary_of(path.name)
        if own is None:
            return  # its integers are no ids
        self._check_ids(path, own, highest)
        lines = len(items.sizes) - ends.none
        if ended <= _MOSTLY * lines:
            return  # items of this dataset have no end
        row.empty = ends.empty
        if ended < lines:
            self._problem(f"{path}: item {odd} does not end with </s>, as {ended:,} of the {lines:,} items do")
        if ends.none:
            self._problem(f"{path}: {ends.none:,} items have no token, not even the </s> that ends all others")

    def _check_ids(self, path: Path, dictionary: str, highest: int) -> None:
        size = self._sizes.get(dictionary)
        if size is None:
            if not (path.parent / dictionary).exists():
                self._report.notes.append(f"{path.parent} has no {dictionary}: the ids of {path.name} are not checked")
        elif highest >= size:
            self._problem(
                f"{path} holds the id {highest}, but {path.parent / dictionary} has only {size:,} symbols: it is damaged, or"
                " was made with another dictionary"
            )

    def _blocks(self, name: str) -> Iterator[bytes]:
        crc = 0
        with open(self._report.folder / name, "rb") as handle:
            while block := handle.read(_BLOCK):
                crc = zlib.crc32(block, crc)
                self._report.read += len(block)
                self._advance(len(block))
                yield block
        self._report.checksums[name] = f"{crc:08x}"

    def _row(self, name: str) -> Row:
        self._report.rows.append(Row(name))
        return self._report.rows[-1]

    def _problem(self, message: str) -> None:
        self._report.problems.append(message)


def _drain(blocks: Iterator[bytes]) -> None:
    """Read everything, for its checksum alone."""
    for _ in blocks:
        pass


def _check_columns(report: FolderReport) -> None:
    """All that belongs to a split, in its files, must be of as many items."""
    for split in report.splits:
        counts = report.counts(split)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{split}{column} {count:,}" for column, count in counts.items())
            report.problems.append(f"{report.folder}: what belongs together has different numbers of items: {found}")


def _compare(report: FolderReport) -> None:
    """Compare the folder with its manifest."""
    try:
        files = manifest.read_manifest(report.folder)
    except DataError as error:
        report.problems.append(str(error))
        return
    if files is None:
        report.notes.append(f"{report.folder} has no {manifest.NAME}, so that its files are compared with nothing")
        return
    wrong = {name: reason for name, entry in files.items() if (reason := _difference(report, name, entry, files))}
    report.changed = len(wrong)
    for name, reason in wrong.items():
        report.problems.append(f"{report.folder / name} {reason}")
    unlisted = [name for name in report.files if name not in files]
    if unlisted:
        report.notes.append(f"{report.folder / manifest.NAME} does not list {', '.join(unlisted)}")
    for row in report.rows:
        names = [name for name in (row.name, f"{row.name}.bin", f"{row.name}.idx") if name in report.files]
        states = [NOT_LISTED if name not in files else DIFFERS if name in wrong else SAME for name in names]
        row.agrees = next(state for state in (DIFFERS, NOT_LISTED, SAME) if state in states)


def _difference(report: FolderReport, name: str, entry: manifest.Entry, files: manifest.Files) -> str | None:
    """What is wrong with a file of the manifest."""
    path = report.folder / name
    if not path.is_file():
        return f"is missing, but {manifest.NAME} lists it"
    size = path.stat().st_size
    meaning = _MEANING if manifest.is_dictionary(name) else ""
    if size != entry.bytes:
        return f"has {size:,} bytes, but had {entry.bytes:,} when it was written{meaning}"
    if report.checksums.get(name, entry.crc32) != entry.crc32:
        return f"is not what was written: its checksum is {report.checksums[name]}, but was {entry.crc32}{meaning}"
    row = next((row for row in report.rows if f"{row.name}.idx" == name), None)
    described = (entry.sentences, entry.tokens, entry.dtype)
    if row and row.tokens is not None and (row.items, row.tokens, row.dtype) != described:
        return (
            f"has {row.items:,} items and {row.tokens:,} tokens ({row.dtype}), but {manifest.NAME} says something else"
        )
    own = manifest.dictionary_of(name.removesuffix(".idx"))
    if own and own in files and entry.dictionary not in (None, files[own].crc32):
        return f"was made with another {own} than the one beside it"
    return None
