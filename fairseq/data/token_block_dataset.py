"""`TokenBlockDataset`: a corpus of sentences cut into blocks of tokens.

A block is a half-open range of token positions in the concatenation of all sentences. That is all that is stored: 16
bytes a block of whole sentences, nothing for blocks of fixed length. When the sentences lie one after the other in a
memory-mapped file, a block is read as one slice of it and no table of sentence positions exists at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.datasets import SizedDataset
from fairseq.errors import ConfigError, DataError
from fairseq.ops.blocks import complete_blocks


class TokenBlockDataset(SizedDataset):
    """Blocks of the 1-D token tensors of ``dataset``. Negative indices count from the end.

    Args:
        dataset: the sentences: a dataset, a list of 1-D tensors, or a tensor (sentences, tokens).
        sizes: their lengths in tokens: an array, a tensor, or a list of numbers (or tensors of one).
        block_size: tokens in a block; unused (and None is fine) with ``break_mode="eos"``.
        pad, eos: ids, used for the missing left context with ``include_targets``.
        break_mode: ``None`` or ``"none"``: blocks of exactly ``block_size`` tokens (the last may be shorter) that ignore
            sentence limits; ``"complete"``: as many whole sentences as fit (a longer one is a block of its own);
            ``"complete_doc"``: the same, within documents, which sentences of ``document_sep_len`` tokens separate;
            ``"eos"``: one sentence a block.
        include_targets: items are triples: the block shifted right by one, the block, the block shifted right by two.
        document_sep_len: length of the sentences that separate documents (an empty line is a lone eos: 1).
        use_plasma_view, split_path, plasma_path: accepted for old callers, without effect.

    Raises DataError when there is nothing to cut. Deliberate deviation: block sizes are not stored in 16 bits, so that
    blocks above 65535 tokens keep their size (and are filtered out where they are too long). Kept: the epoch is not
    passed on to ``dataset``, so random crops of the sentences are the same in every epoch.
    """

    def __init__(
        self,
        dataset: Any,
        sizes: Any,
        block_size: int | None,
        pad: int | None,
        eos: int | None,
        break_mode: str | None = None,
        include_targets: bool = False,
        document_sep_len: int = 1,
        use_plasma_view: bool = False,
        split_path: str | None = None,
        plasma_path: str | None = None,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.pad, self.eos = pad, eos
        self.include_targets = include_targets
        self._sentence_sizes = lengths(sizes)
        if len(dataset) == 0 or len(dataset) != len(self._sentence_sizes):
            raise DataError(
                f"token blocks need at least one sentence and a size for each, but got {len(dataset)} sentences and "
                f"{len(self._sentence_sizes)} sizes: is the data file empty?"
            )
        self._total = int(self._sentence_sizes.sum(dtype=np.int64))
        # Exactly one of three: fixed length (both None), explicit ranges, or one block a sentence.
        self._ranges: np.ndarray | None = None
        self._is_sentences = break_mode == "eos"
        if not self._is_sentences and (block_size is None or block_size < 1):
            raise ConfigError(f"the block size (tokens_per_sample - 1) must be at least 1, but is {block_size} instead")
        self._block_size = block_size or 0
        if break_mode in ("complete", "complete_doc"):
            separator = document_sep_len if break_mode == "complete_doc" else None
            self._ranges = complete_blocks(self._sentence_sizes, self._block_size, separator)
        elif not self._is_sentences and break_mode not in (None, "none"):
            raise ConfigError(
                f"sample_break_mode must be none, complete, complete_doc or eos, but is {break_mode!r} instead"
            )
        self.sizes = self._block_sizes()
        if len(self.sizes) == 0:
            raise DataError(
                f"{len(dataset)} sentences ({self._total} tokens) give no block with sample_break_mode {break_mode}: all of "
                "them are empty or separate documents; check the data or choose another --sample-break-mode"
            )
        contiguous = hasattr(dataset, "read_tokens") and bool(getattr(dataset, "is_contiguous", False))
        self._reads_ranges = not include_targets and contiguous
        # Where each sentence starts; needed only when a block has to be put together from sentences.
        needs_starts = not self._reads_ranges and (include_targets or not self._is_sentences)
        self._starts = self._sentence_starts() if needs_starts else None

    def _block_sizes(self) -> np.ndarray:
        if self._is_sentences:
            return self._sentence_sizes
        if self._ranges is not None:
            sizes = self._ranges[:, 1] - self._ranges[:, 0]
        else:
            size = self._block_size
            sizes = np.full(-(-self._total // size), min(size, self._total))
            if len(sizes):
                sizes[-1] = self._total - (len(sizes) - 1) * size
        wide = len(sizes) and sizes.max() > np.iinfo(np.int32).max
        return sizes if wide else sizes.astype(np.int32)

    def _sentence_starts(self) -> np.ndarray:
        starts = np.zeros(len(self._sentence_sizes) + 1, dtype=np.int64)
        np.cumsum(self._sentence_sizes, out=starts[1:])
        return starts

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def slice_indices(self) -> np.ndarray:
        """Token range of every block, int64 (blocks, 2); made on each access unless it is stored."""
        if self._ranges is not None:
            return self._ranges
        ends = np.cumsum(self.sizes, dtype=np.int64)
        return np.stack([ends - self.sizes, ends], axis=1)

    @property
    def block_to_dataset_index(self) -> np.ndarray:
        """(first sentence, offset in it, last sentence) of every block, int64 (blocks, 3); made on each access."""
        return locate(self._sentence_starts(), self.slice_indices)

    def _range(self, index: int) -> tuple[int, int]:
        if self._ranges is not None:
            start, stop = self._ranges[index]
            return int(start), int(stop)
        if self._is_sentences:
            assert self._starts is not None  # only asked for when items are put together from sentences
            return int(self._starts[index]), int(self._starts[index + 1])
        start = int(index) * self._block_size
        return start, start + int(self.sizes[index])

    def __getitem__(self, index: int) -> Any:
        if not -len(self.sizes) <= index < len(self.sizes):
            raise IndexError(f"block {index} of {len(self.sizes)}")
        index = int(index) % len(self.sizes)
        if self._is_sentences and not self.include_targets:
            return self.dataset[index]
        start, stop = self._range(index)
        if self._reads_ranges:
            return torch.from_numpy(self.dataset.read_tokens(start, stop).astype(np.int64))
        buffer, offset = self._gather(start, stop)
        if self.include_targets:
            return self._with_context(buffer, offset)
        return buffer[offset:]

    def _gather(self, start: int, stop: int) -> tuple[Tensor, int]:
        """Tokens from the beginning of the sentence that holds ``start`` up to ``stop``, and where ``start`` is."""
        assert self._starts is not None
        [[first, offset, last]] = locate(self._starts, np.array([[start, stop]])).tolist()
        buffer = torch.cat([self.dataset[i] for i in range(first, last + 1)])
        return buffer[: offset + stop - start], offset

    def _with_context(self, buffer: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """(shifted right by one, block, shifted right by two); context before the sentence is pad, eos."""
        padded = torch.cat([buffer.new_tensor([self.pad, self.eos]), buffer])
        shift_one, shift_two = padded[offset + 1 : -1], padded[offset:-2]
        return shift_one, buffer[offset:], shift_two

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.dataset, "supports_prefetch", False)

    def prefetch(self, indices: Any) -> None:
        """Prefetch the sentences that the given blocks are made of, unless they are read as slices of a mapped file."""
        if self._reads_ranges:
            return
        table = self.block_to_dataset_index[np.asarray(list(indices), dtype=np.int64)]
        self.dataset.prefetch(sorted({i for first, _, last in table.tolist() for i in range(first, last + 1)}))


def lengths(sizes: Any) -> np.ndarray:
    """``sizes`` as an array; they may be a tensor, or a list of numbers or of tensors of one number."""
    if torch.is_tensor(sizes):
        return sizes.numpy()
    if isinstance(sizes, (list, tuple)):
        return np.array([int(size) for size in sizes], dtype=np.int64)
    return np.asarray(sizes)


def locate(starts: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """(first sentence, offset in it, last sentence), int64 (n, 3), of token ``ranges`` (n, 2).

    ``starts`` (sentences + 1,) holds where each sentence starts, and the total. At a limit the following sentence is
    the first one; sentences without tokens hold no position.
    """
    first = np.searchsorted(starts, ranges[:, 0], side="right") - 1
    last = np.searchsorted(starts, ranges[:, 1], side="left") - 1
    return np.stack([first, ranges[:, 0] - starts[first], last], axis=1)
