"""Old names of the data side: binarizer classes, the batching and block operators, `LRUCacheDataset`.

The binarizers go line by line through `Dictionary.encode_line`, for programs of one's own; ``fairseq-preprocess``
uses the array path of `fairseq.data.preprocessing`, which writes the same files. The operators are in `fairseq.ops`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from fairseq.data.batching import batch_by_size
from fairseq.data.cached_path import cache_directory
from fairseq.data.datasets import BaseWrapperDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import data_file_path, index_file_path
from fairseq.data.indexed_dataset import make_builder
from fairseq.data.pool import map_in_order
from fairseq.data.text import ByteRange, Chunker, chunk_ranges, tokenize_line
from fairseq.data.token_block_dataset import locate
from fairseq.ops.blocks import complete_blocks

PYTORCH_FAIRSEQ_CACHE = str(cache_directory())

logger = logging.getLogger("fairseq.binarizer")


@dataclass
class BinarizeSummary:
    """Lines, tokens, and the words that became unk with their counts."""

    num_seq: int = 0
    replaced: Counter[str] | None = field(default_factory=Counter)
    num_tok: int = 0

    @property
    def num_replaced(self) -> int:
        return sum(self.replaced.values()) if self.replaced else 0

    @property
    def replaced_percent(self) -> float:
        return 100 * self.num_replaced / self.num_tok

    def __str__(self) -> str:
        base = f"{self.num_seq} sents, {self.num_tok} tokens"
        return base if self.replaced is None else f"{base}, {self.replaced_percent:.3}% replaced"

    def merge(self, other: BinarizeSummary) -> None:
        """Add the counts of ``other``."""
        if self.replaced is None:
            self.replaced = other.replaced
        elif other.replaced is not None:
            self.replaced.update(other.replaced)
        self.num_seq += other.num_seq
        self.num_tok += other.num_tok


class Binarizer(ABC):
    """A line to a tensor, keeping count in the summary."""

    @abstractmethod
    def binarize_line(self, line: str, summary: BinarizeSummary) -> torch.Tensor: ...


class VocabularyDatasetBinarizer(Binarizer):
    """Words to ids; ``already_numberized`` lines hold the ids themselves."""

    def __init__(
        self,
        dict: Dictionary,
        tokenize: Callable[[str], list[str]] = tokenize_line,
        append_eos: bool = True,
        reverse_order: bool = False,
        already_numberized: bool = False,
    ) -> None:
        self.dict, self.tokenize = dict, tokenize
        self.append_eos, self.reverse_order, self.already_numberized = append_eos, reverse_order, already_numberized

    def binarize_line(self, line: str, summary: BinarizeSummary) -> torch.Tensor:
        if summary.replaced is None:
            summary.replaced = Counter()
        replaced = summary.replaced

        def count(word: str, idx: int) -> None:
            if idx == self.dict.unk_index and word != self.dict.unk_word:
                replaced[word] += 1

        if self.already_numberized:
            numbers = [int(word) for word in line.strip().split()]
            if self.reverse_order:
                numbers.reverse()
            if self.append_eos:
                numbers.append(self.dict.eos())
            ids = torch.tensor(numbers, dtype=torch.int32)
        else:
            ids = self.dict.encode_line(
                line,
                line_tokenizer=self.tokenize,
                add_if_not_exist=False,
                consumer=count,
                append_eos=self.append_eos,
                reverse_order=self.reverse_order,
            )
        summary.num_seq += 1
        summary.num_tok += len(ids)
        return ids


class FileBinarizer:
    """Whole files to corpora, on several processes."""

    @classmethod
    def multiprocess_dataset(
        cls,
        input_file: str,
        dataset_impl: str,
        binarizer: Binarizer,
        output_prefix: str,
        vocab_size: int | None = None,
        num_workers: int = 1,
    ) -> BinarizeSummary:
        """Write ``output_prefix.bin`` and ``.idx``; the result does not depend on ``num_workers``."""
        chunks = chunk_ranges(input_file, num_workers)
        builder = make_builder(data_file_path(output_prefix), dataset_impl, vocab_size=vocab_size)
        total = BinarizeSummary()
        for items, summary in map_in_order(partial(_binarize_lines, binarizer, input_file), chunks, num_workers):
            for item in items:
                builder.add_item(torch.from_numpy(item))
            total.merge(summary)
        builder.finalize(index_file_path(output_prefix))
        return total


def _binarize_lines(
    binarizer: Binarizer, filename: str, byte_range: ByteRange
) -> tuple[list[np.ndarray], BinarizeSummary]:
    summary = BinarizeSummary()
    with Chunker(filename, *byte_range) as lines:
        return [binarizer.binarize_line(line, summary).numpy() for line in lines], summary


def batch_by_size_vec(
    indices: np.ndarray, num_tokens_vec: np.ndarray, max_tokens: int, max_sentences: int, bsz_mult: int
) -> list[np.ndarray]:
    """Batches of ``indices`` as a list of int64 arrays; limits of -1 mean none."""
    return list(
        batch_by_size(
            indices,
            num_tokens_fn=lambda _: 0,
            num_tokens_vec=num_tokens_vec,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=bsz_mult,
        )
    )


def batch_by_size_fn(
    indices: np.ndarray, num_tokens_fn: Callable[[int], int], max_tokens: int, max_sentences: int, bsz_mult: int
) -> list[np.ndarray]:
    """The same, asking ``num_tokens_fn`` for each length."""
    return list(
        batch_by_size(
            indices,
            num_tokens_fn,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=bsz_mult,
        )
    )


def _get_slice_indices_fast(
    sizes: np.ndarray | Sequence[int], break_mode: str | None, block_size: int, document_sep_len: int
) -> np.ndarray:
    """Token ranges, int64 (blocks, 2), of the blocks of ``break_mode``."""
    sizes = np.asarray(sizes, dtype=np.int64)
    if break_mode in ("complete", "complete_doc"):
        return complete_blocks(sizes, block_size, document_sep_len if break_mode == "complete_doc" else None)
    if break_mode == "eos":
        ends = np.cumsum(sizes)
        return np.stack([ends - sizes, ends], axis=1)
    if break_mode not in (None, "none"):
        raise ValueError(f"break_mode must be none, complete, complete_doc or eos, but is {break_mode!r} instead")
    starts = np.arange(0, int(sizes.sum()), block_size, dtype=np.int64)
    return np.stack([starts, np.minimum(starts + block_size, sizes.sum())], axis=1)


def _get_block_to_dataset_index_fast(sizes: np.ndarray | Sequence[int], slice_indices: np.ndarray) -> np.ndarray:
    """(first sentence, offset in it, last sentence) of every range, int64 (blocks, 3)."""
    starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])
    return locate(starts, np.asarray(slice_indices))


CAPACITY = 8


class LRUCacheDataset(BaseWrapperDataset):
    """The last 8 items stay in memory, until the epoch changes (items may be functions of the epoch)."""

    def __init__(self, dataset: Any, token: Any = None) -> None:
        super().__init__(dataset)
        self._cache: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, index: int) -> Any:
        key = int(index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        item = self._cache[key] = self.dataset[key]
        if len(self._cache) > CAPACITY:
            self._cache.popitem(last=False)
        return item

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._cache.clear()
