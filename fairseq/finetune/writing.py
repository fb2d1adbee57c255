"""Writing a split whose columns do not come as files of text: memory-mapped columns of integers, and JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import best_fitting_int_dtype
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.finetune.layout import Job, Sample, SplitSummary


class SplitWriter(ExitStack):
    """Writes the columns ``DEST/folder/split`` of what is in ``path``; they are closed at the end of its ``with``.

    ``summary`` counts the tokens of `ids`; ``sample`` judges the texts that it is given.
    """

    def __init__(self, job: Job, split: str, path: Path) -> None:
        super().__init__()
        self._dest, self._split, self._dictionary = job.dest, split, job.dictionary
        self.summary, self.sample = SplitSummary(split, path), Sample(path, job.dictionary, job.bpe)

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
        column = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        self.callback(column.finalize, f"{prefix}.idx")
        return column

    def rows(self, folder: str) -> IO[str]:
        """A file for JSON lines."""
        path = self._folder(folder) / f"{self._split}.jsonl"
        return self.enter_context(path.open("w", encoding="utf-8", newline="\n"))

    def ids(self, symbols: Sequence[str]) -> npt.NDArray[np.int64]:
        """The ids of pieces of text, which are counted."""
        found = np.array([self._dictionary.index(symbol) for symbol in symbols], dtype=np.int64)
        self.summary.tokens += len(found)
        self.summary.unknown += int((found == self._dictionary.unk()).sum())
        return found

    def _folder(self, name: str) -> Path:
        (self._dest / name).mkdir(exist_ok=True)
        return self._dest / name
