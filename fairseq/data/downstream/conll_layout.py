"""The binarised form of CoNLL columns, written by `fairseq.data.downstream.conll`, read by ``token_classification``.

For every split, in ``DEST/``:

* ``input0/dict.txt``, ``input0/{split}.bin`` and ``.idx``: pieces of every sentence, without special symbols;
* ``input0/{split}.words.bin`` and ``.idx``: int32, the number of pieces of every word of the sentence;
* ``input0/{split}.jsonl``: the words of every sentence, one list a line;
* ``label/dict.txt``, ``label/{split}.bin`` and ``.idx``: one label a word, without an end symbol.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from fairseq.data.dictionary import Dictionary
from fairseq.data.downstream.json_lines import read_rows, write_row
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder
from fairseq.data.mmap_index import best_fitting_int_dtype
from fairseq.errors import DataError, DataNotFoundError

Ints = npt.NDArray[np.int64]


class ConllWriter:
    """Writes one split; use it in a ``with``. Counts sentences, tokens and unknown tokens."""

    def __init__(self, dest: Path, split: str, dictionary: Dictionary, labels: Dictionary) -> None:
        self._dictionary, self._labels = dictionary, labels
        self._prefixes = {"sentences": dest / "input0" / split, "labels": dest / "label" / split}
        self._prefixes["words"] = dest / "input0" / f"{split}.words"
        for folder, symbols in (("input0", dictionary), ("label", labels)):
            (dest / folder).mkdir(exist_ok=True)
            symbols.save(str(dest / folder / "dict.txt"))
        dtypes = {"sentences": best_fitting_int_dtype(len(dictionary)), "labels": np.uint16, "words": np.int32}
        self._builders = {
            name: MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtypes[name])
            for name, prefix in self._prefixes.items()
        }
        self._text = (dest / "input0" / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n")
        self.sentences = self.tokens = self.unknown = 0

    def add(self, words: list[str], pieces: list[list[str]], labels: list[str]) -> None:
        """A sentence: its words, the symbols and the label of each."""
        ids = np.array([self._dictionary.index(symbol) for found in pieces for symbol in found], dtype=np.int64)
        self._builders["sentences"].add_item(ids)
        self._builders["words"].add_item(np.array([len(found) for found in pieces]))
        self._builders["labels"].add_item(np.array([self._labels.index(label) for label in labels]))
        write_row(self._text, words)
        self.sentences += 1
        self.tokens += len(ids)
        self.unknown += int((ids == self._dictionary.unk()).sum())

    def __enter__(self) -> ConllWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._text.close()
        if kind is None:
            for name, builder in self._builders.items():
                builder.finalize(f"{self._prefixes[name]}.idx")


class ConllSplit:
    """One split, as the source of a `fairseq.data.token_labels_dataset.TokenLabelsDataset`.

    Raises DataNotFoundError when it is not there, DataError when its files do not belong together.
    """

    def __init__(self, directory: str | Path, split: str, labels: Dictionary) -> None:
        self._prefix = Path(directory) / "input0" / split
        label_prefix = Path(directory) / "label" / split
        self._nspecial = labels.nspecial
        for prefix in (self._prefix, label_prefix):
            if not Path(f"{prefix}.idx").is_file():
                raise DataNotFoundError(
                    f"Dataset not found: {split} ({prefix}); make it with fairseq-preprocess-task --task conll"
                )
        self.sentences = MMapIndexedDataset(str(self._prefix))
        self._words = MMapIndexedDataset(f"{self._prefix}.words")
        self._labels = MMapIndexedDataset(str(label_prefix))
        if not np.array_equal(self._words.sizes, self._labels.sizes):
            wrong = (
                int(np.argmax(self._words.sizes != self._labels.sizes)) if len(self._words) == len(self._labels) else 0
            )
            raise DataError(
                f"{label_prefix} does not have one label a word (first in sentence {wrong + 1}); preprocess the data again"
            )
        for sentence in range(len(self.sentences)):
            if self.sizes(sentence).sum() != self.sentences.sizes[sentence]:
                raise DataError(f"{self._prefix}.words does not belong to {self._prefix}; preprocess the data again")

    @cached_property
    def words(self) -> list[list[str]]:
        """The words of every sentence."""
        return read_rows(Path(f"{self._prefix}.jsonl"), len(self.sentences))

    def sizes(self, sentence: int) -> Ints:
        """Pieces of every word (W)."""
        return self._words[sentence].numpy()

    def labels(self, sentence: int) -> Ints | None:
        """The class of every word (W)."""
        return self._labels[sentence].numpy() - self._nspecial
