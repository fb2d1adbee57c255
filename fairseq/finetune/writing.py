"""Writing a split whose columns do not come as files of text: memory-mapped columns of integers, and JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import best_fitting_int_dtype
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder


class SplitWriter:
    """Writes the columns ``DEST/folder/split``; use it in a ``with``. Counts tokens and unknown ones of `ids`."""

    def __init__(self, dest: Path, split: str, dictionary: Dictionary) -> None:
        self._dest, self._split, self._dictionary = dest, split, dictionary
        self._columns: dict[str, MMapIndexedDatasetBuilder] = {}
        self._files = ExitStack()
        self.tokens = self.unknown = 0

    def symbols(
        self, folder: str, dictionary: Dictionary | None = None, dtype: Any = None
    ) -> MMapIndexedDatasetBuilder:
        """A column of symbols, with their dictionary beside it."""
        dictionary = dictionary or self._dictionary
        column = self.column(folder, dtype=dtype or best_fitting_int_dtype(len(dictionary)))
        dictionary.save(str(self._dest / folder / "dict.txt"))
        return column

    def column(self, folder: str, suffix: str = "", dtype: Any = np.int32) -> MMapIndexedDatasetBuilder:
        """A column of integers."""
        prefix = f"{self._folder(folder) / self._split}{suffix}"
        self._columns[prefix] = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        return self._columns[prefix]

    def rows(self, folder: str) -> IO[str]:
        """A file for JSON lines."""
        path = self._folder(folder) / f"{self._split}.jsonl"
        return self._files.enter_context(path.open("w", encoding="utf-8", newline="\n"))

    def ids(self, symbols: Sequence[str]) -> npt.NDArray[np.int64]:
        """The ids of pieces of text, which are counted."""
        found = np.array([self._dictionary.index(symbol) for symbol in symbols], dtype=np.int64)
        self.tokens += len(found)
        self.unknown += int((found == self._dictionary.unk()).sum())
        return found

    def _folder(self, name: str) -> Path:
        (self._dest / name).mkdir(exist_ok=True)
        return self._dest / name

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()
        if kind is None:
            for prefix, column in self._columns.items():
                column.finalize(f"{prefix}.idx")
