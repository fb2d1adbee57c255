"""`MaskTokensDataset`: masked sequences and their targets, a pure function of (seed, epoch, index)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.base_wrapper_dataset import BaseWrapperDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.masking import MaskingOptions, TokenSampler, mask_sequence
from fairseq.errors import DataError
from fairseq.rng import legacy_generator


class _Masker:
    """Masks items of ``dataset`` and keeps the last pair, which source and target views read one after the other.

    The pair is keyed by epoch and index: an item never comes back with the mask of an earlier epoch.
    """

    def __init__(
        self,
        dataset: Any,
        vocab_size: int,
        pad_idx: int,
        mask_idx: int,
        seed: int,
        options: MaskingOptions | None,
        sampler: TokenSampler | None,
        word_begins: np.ndarray | None,
    ) -> None:
        self.dataset = dataset
        self.vocab_size = vocab_size
        self.pad_idx, self.mask_idx, self.seed = pad_idx, mask_idx, seed
        self.options, self.sampler, self.word_begins = options, sampler, word_begins
        self.epoch = 0
        self._last: tuple[int, int, Tensor, Tensor] | None = None

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(source, target) of item ``index`` in the current epoch, int64 (T) each; do not change them."""
        last = self._last
        if last is not None and last[0] == self.epoch and last[1] == index:
            return last[2], last[3]
        epoch, item = self.epoch, self.dataset[index]
        if self.options is None:
            source = target = item.clone()
        else:
            source, target = self._mask(item.numpy(), epoch, index, self.options)
        self._last = (epoch, index, source, target)  # one assignment: threads see a whole pair
        return source, target

    def _mask(self, item: np.ndarray, epoch: int, index: int, options: MaskingOptions) -> tuple[Tensor, Tensor]:
        highest = item.max() if len(item) else 0
        if highest >= self.mask_idx and (item == self.mask_idx).any():
            raise DataError(
                f"sample #{index} already holds the mask symbol (id {self.mask_idx}): the data was made with another "
                "dictionary, or <mask> occurs in the text"
            )
        if highest >= self.vocab_size:
            raise DataError(
                f"sample #{index} holds the id {highest}, but the dictionary has only {self.vocab_size} symbols: "
                "dict.txt does not fit the data; use the one it was preprocessed with"
            )
        begins = None if self.word_begins is None else self.word_begins[item]
        stream = legacy_generator(self.seed, epoch, index)
        source, target = mask_sequence(stream, item, options, self.mask_idx, self.pad_idx, self.sampler, begins)
        return torch.from_numpy(source), torch.from_numpy(target)


class MaskTokensDataset(BaseWrapperDataset):
    """Masked sources, or (``return_masked_tokens``) targets that hold ``pad_idx`` where nothing is predicted.

    Use :meth:`apply_mask` for both: the two views share one masking computation an item.

    Args:
        dataset: 1-D int64 tensors of token ids (T).
        vocab: the dictionary, with the mask symbol already in it.
        pad_idx: padding id, the "nothing to predict" of targets.
        mask_idx: what replaces masked tokens.
        return_masked_tokens: be the targets.
        seed: masks are drawn from (seed, epoch, index).
        mask_prob: share of the tokens to predict, above 0 and below 1. Any token may be masked, bos and eos too.
        leave_unmasked_prob: share of these that stay as they are in the source.
        random_token_prob: share of these that become random tokens in the source.
        freq_weighted_replacement: draw random tokens by their dictionary counts rather than uniformly.
        mask_whole_words: non-zero where a symbol of the vocabulary begins a word (V); mask words instead of tokens.
        mask_multiple_length: tokens (words) masked in a row.
        mask_stdev: standard deviation of that length; 0: constant.
        skip_masking: source and target are both a copy of the item.

    The masks are those of fairseq 0.12 bit for bit (`fairseq.data.masking`). Deliberate deviation: the original cached
    items by index only and could return the mask of the previous epoch at an epoch's end.
    """

    @classmethod
    def apply_mask(cls, dataset: Any, *args: Any, **kwargs: Any) -> tuple[MaskTokensDataset, MaskTokensDataset]:
        """(sources, targets) over ``dataset``; arguments as those of the constructor."""
        sources = cls(dataset, *args, **{**kwargs, "return_masked_tokens": False})
        targets = cls(dataset, *args, **{**kwargs, "return_masked_tokens": True})
        targets._masker = sources._masker
        return sources, targets

    def __init__(
        self,
        dataset: Any,
        vocab: Dictionary,
        pad_idx: int,
        mask_idx: int,
        return_masked_tokens: bool = False,
        seed: int = 1,
        mask_prob: float = 0.15,
        leave_unmasked_prob: float = 0.1,
        random_token_prob: float = 0.1,
        freq_weighted_replacement: bool = False,
        mask_whole_words: Tensor | None = None,
        mask_multiple_length: int = 1,
        mask_stdev: float = 0.0,
        skip_masking: bool = False,
    ) -> None:
        super().__init__(dataset)
        self.vocab = vocab
        self.pad_idx, self.mask_idx = pad_idx, mask_idx
        self.return_masked_tokens = return_masked_tokens
        self.seed = seed
        options = (
            None
            if skip_masking
            else MaskingOptions(mask_prob, leave_unmasked_prob, random_token_prob, mask_multiple_length, mask_stdev)
        )
        sampler = None
        if random_token_prob > 0.0 and not skip_masking:
            counts = vocab.count if freq_weighted_replacement else None
            sampler = TokenSampler.over_dictionary(counts, len(vocab), vocab.nspecial)
        begins = None if mask_whole_words is None else np.asarray(mask_whole_words)
        if begins is not None and len(begins) < len(vocab):
            raise DataError(f"mask_whole_words covers {len(begins)} symbols, but the dictionary has {len(vocab)}")
        self._masker = _Masker(dataset, len(vocab), pad_idx, mask_idx, seed, options, sampler, begins)

    @property
    def epoch(self) -> int:
        return self._masker.epoch

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._masker.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # masking changes no sizes

    def __getitem__(self, index: int) -> Tensor:
        return self._masker.pair(int(index))[self.return_masked_tokens]
