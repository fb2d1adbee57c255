"""The binarised form of SQuAD on disk, written by `fairseq.data.downstream.squad`, read by ``question_answering``.

For every split, in ``DEST/``:

* ``input0/dict.txt``, ``input0/{split}.bin`` and ``.idx``: pieces of every question, without special symbols;
* ``input1/dict.txt``, ``input1/{split}.bin`` and ``.idx``: pieces of every paragraph (context), once, likewise;
* ``input1/{split}.offsets.bin`` and ``.idx``: int32, for every piece of a context the characters [start, stop) that it
  stands for, start and stop in turn;
* ``input1/{split}.jsonl``: the text of every context, one JSON string a line;
* ``label/{split}.jsonl``: one object a question: ``id``, ``context`` (number of its paragraph, from 0) and ``answers``, a
  list of ``[text, first character]``; an empty one: there is no answer, or it is not known.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.downstream.json_lines import read_rows, write_row
from fairseq.data.downstream.squad_json import Question
from fairseq.data.encoders.offsets import Span
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from fairseq.data.mmap_index import best_fitting_int_dtype
from fairseq.data.span_dataset import Record
from fairseq.errors import DataError, DataNotFoundError


class SquadWriter:
    """Writes one split; use it in a ``with``. Counts contexts, questions, tokens and unknown tokens."""

    def __init__(self, dest: Path, split: str, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        self._prefixes = {"question": dest / "input0" / split, "context": dest / "input1" / split}
        self._prefixes["offsets"] = dest / "input1" / f"{split}.offsets"
        for folder in ("input0", "input1", "label"):
            (dest / folder).mkdir(exist_ok=True)
        for folder in ("input0", "input1"):
            dictionary.save(str(dest / folder / "dict.txt"))
        dtype = best_fitting_int_dtype(len(dictionary))
        self._builders = {
            name: MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32 if name == "offsets" else dtype)
            for name, prefix in self._prefixes.items()
        }
        self._files = ExitStack()
        texts, records = dest / "input1" / f"{split}.jsonl", dest / "label" / f"{split}.jsonl"
        self._texts = self._files.enter_context(texts.open("w", encoding="utf-8", newline="\n"))
        self._records = self._files.enter_context(records.open("w", encoding="utf-8", newline="\n"))
        self.contexts = self.questions = self.tokens = self.unknown = 0

    def add_context(self, text: str, symbols: list[str], spans: list[Span]) -> None:
        self._add("context", symbols)
        self._builders["offsets"].add_item(np.asarray(spans, dtype=np.int32).reshape(-1))
        write_row(self._texts, text)
        self.contexts += 1

    def add_question(self, question: Question, symbols: list[str]) -> None:
        """A question about the context that was added last."""
        self._add("question", symbols)
        answers = [list(answer) for answer in question.answers]
        write_row(self._records, {"id": question.id, "context": self.contexts - 1, "answers": answers})
        self.questions += 1

    def _add(self, name: str, symbols: list[str]) -> None:
        ids = np.array([self._dictionary.index(symbol) for symbol in symbols], dtype=np.int64)
        self._builders[name].add_item(ids)
        self.tokens += len(ids)
        self.unknown += int((ids == self._dictionary.unk()).sum())

    def __enter__(self) -> SquadWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()
        if kind is None:
            for name, builder in self._builders.items():
                builder.finalize(f"{self._prefixes[name]}.idx")


class SquadSplit:
    """One split, as the source of a `fairseq.data.span_dataset.SpanDataset`.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self._directory, self._split = Path(directory), split
        prefixes = [self._directory / folder / split for folder in ("input0", "input1")]
        for prefix in prefixes:
            if not Path(f"{prefix}.idx").is_file():
                raise DataNotFoundError(
                    f"Dataset not found: {split} ({prefix}); make it with fairseq-preprocess-task --task squad (or squad2)"
                )
        self.questions = MMapIndexedDataset(str(prefixes[0]))
        self.contexts = MMapIndexedDataset(str(prefixes[1]))
        self._offsets = MMapIndexedDataset(f"{prefixes[1]}.offsets")
        if not np.array_equal(2 * self.contexts.sizes.astype(np.int64), self._offsets.sizes):
            raise DataError(f"{prefixes[1]}.offsets does not belong to {prefixes[1]}; preprocess the data again")

    def spans(self, context: int) -> npt.NDArray[np.int64]:
        """Characters [start, stop) of every piece of a context (C, 2)."""
        return self._offsets[context].numpy().reshape(-1, 2)

    @cached_property
    def texts(self) -> list[str]:
        """The text of every context."""
        return read_rows(self._directory / "input1" / f"{self._split}.jsonl", len(self.contexts))

    @cached_property
    def records(self) -> list[Record]:
        """What is known of every question."""
        path = self._directory / "label" / f"{self._split}.jsonl"
        return [self._record(row, path, line) for line, row in enumerate(read_rows(path, len(self.questions)), 1)]

    def _record(self, row: Any, path: Path, line: int) -> Record:
        try:
            answers = tuple((str(text), int(start)) for text, start in row["answers"])
            record = Record(str(row["id"]), int(row["context"]), answers)
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}, line {line}: {json.dumps(row)[:80]} is no question; preprocess again") from None
        if not 0 <= record.context < len(self.contexts):
            raise DataError(f"{path}, line {line}: there is no context {record.context}; preprocess the data again")
        return record
