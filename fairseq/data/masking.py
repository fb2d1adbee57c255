"""Masking numbers: which tokens of a sequence are predicted, and what the model sees in their place.

Pure functions over one sequence (T tokens; U units, which are the T tokens or, in whole-word mode, its words; V
vocabulary), drawing from a given legacy NumPy stream. The *order of the draws* is the contract: it reproduces the
masks of fairseq 0.12 bit for bit, so no call may be moved, added or skipped. No Python loop runs over tokens.

`MaskTokensDataset` gives masked sequences and their targets, a pure function of (seed, epoch, index).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.data.datasets import BaseWrapperDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders.base import build_bpe
from fairseq.errors import ConfigError, DataError
from fairseq.rng import legacy_generator


@dataclass(frozen=True)
class MaskingOptions:
    """How much is masked, and how."""

    mask_prob: float = 0.15
    """Fraction of the units to predict, in (0, 1)."""
    leave_unmasked_prob: float = 0.1
    """Fraction of the predicted units that the model sees as they are."""
    random_token_prob: float = 0.1
    """Fraction of the predicted units that the model sees as random tokens."""
    mask_multiple_length: int = 1
    """Units masked in a row from each start (mean of the length when ``mask_stdev`` is positive)."""
    mask_stdev: float = 0.0
    """Standard deviation of the span length; 0: every span has the same length."""
    exact: bool = False
    """The same number in every sequence of a length, in the shares above, each rounded (see `mask_exactly`)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_prob < 1.0:
            raise ConfigError(f"mask_prob must be above 0 and below 1, but is {self.mask_prob} instead")
        for name in ("random_token_prob", "leave_unmasked_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be from 0 to 1, but is {getattr(self, name)} instead")
        if self.replaced_prob > 1.0:
            raise ConfigError(
                f"random_token_prob + leave_unmasked_prob must be at most 1, but is {self.replaced_prob} instead"
            )
        if self.mask_multiple_length < 1:
            raise ConfigError(f"mask_multiple_length must be at least 1, but is {self.mask_multiple_length} instead")
        if self.mask_stdev < 0.0:
            raise ConfigError(f"mask_stdev must not be negative, but is {self.mask_stdev} instead")
        if self.exact and (self.mask_multiple_length > 1 or self.mask_stdev > 0.0):
            raise ConfigError("mask_exact masks single tokens: leave mask_multiple_length at 1 and mask_stdev at 0")

    @property
    def replaced_prob(self) -> float:
        """Fraction of the predicted units that do not become the mask symbol."""
        return self.random_token_prob + self.leave_unmasked_prob


def replacement_table(counts: list[int] | None, size: int, nspecial: int) -> np.ndarray:
    """Cumulative probabilities (V) of random replacements; `draw_replacements` draws from them.

    Ids below ``nspecial`` never occur; the others equally often, or in proportion to ``counts``. The mask symbol and
    the padding words count as ordinary symbols, as they did in the original.
    """
    cumulative = replacement_weights(counts, size, nspecial).cumsum()
    return cumulative / cumulative[-1]


def replacement_weights(counts: list[int] | None, size: int, nspecial: int) -> np.ndarray:
    """The probabilities (V) behind `replacement_table`."""
    weights = np.ones(size) if counts is None else np.array(counts, dtype=np.float64)
    weights[:nspecial] = 0.0
    total = weights.sum()
    if not total > 0.0:
        raise DataError(
            "the dictionary has no symbol (with a count above 0) that could replace a masked token at random: "
            "set random_token_prob to 0, or use a dictionary with counts"
        )
    return weights / total


def draw_replacements(stream: np.random.RandomState, table: np.ndarray, count: int) -> np.ndarray:
    """The ids of ``stream.choice(V, count, p=weights)``.

    Its cumulative sum is taken once: doing it for every sequence, as ``choice`` does, costs more than all the rest
    of masking with a vocabulary of 50 000.
    """
    return table.searchsorted(stream.random_sample(count), side="right")


def choose_units(stream: np.random.RandomState, units: int, options: MaskingOptions) -> np.ndarray:
    """The units to predict: bool of shape (U,). Draws 1 to 3 of a sequence."""
    rounding = stream.rand()
    count = int(options.mask_prob * units / float(options.mask_multiple_length) + rounding)
    # The numbers of stream.choice(units, count, replace=False), at half its cost.
    chosen = stream.permutation(units)[:count]
    predicted = np.zeros(units, dtype=bool)
    if options.mask_stdev > 0.0:
        lengths = stream.normal(options.mask_multiple_length, options.mask_stdev, size=count)
        chosen = _spans(chosen, np.maximum(np.rint(lengths), 0).astype(np.int64))
    elif options.mask_multiple_length > 1:
        chosen = (chosen[:, None] + np.arange(options.mask_multiple_length)).ravel()
    else:
        predicted[chosen] = True
        return predicted
    predicted[chosen[chosen < units]] = True
    return predicted


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of the spans ``[start, start + length)`` one after the other."""
    ends = lengths.cumsum()
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts, lengths) + within


def split_replaced(
    stream: np.random.RandomState, predicted: np.ndarray, options: MaskingOptions
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which predicted units keep their token, and which get a random one: bool (U,) each, or None. Draws 4 and 5."""
    if options.replaced_prob <= 0.0:
        return None, None
    units = len(predicted)
    replaced = predicted & (stream.rand(units) < options.replaced_prob)
    if options.random_token_prob == 0.0:
        return replaced, None
    if options.leave_unmasked_prob == 0.0:
        return None, replaced
    kept = replaced & (stream.rand(units) < options.leave_unmasked_prob / options.replaced_prob)
    return kept, replaced ^ kept


def word_lengths(begins: np.ndarray) -> np.ndarray:
    """Tokens in each word, int64 (U,), from ``begins`` (T,), non-zero where a token begins a word."""
    starts = np.flatnonzero(begins)
    if len(begins) and (len(starts) == 0 or starts[0] != 0):
        raise DataError("whole-word masking needs a sequence whose first token begins a word (such as <s>)")
    return np.diff(starts, append=len(begins))


def mask_sequence(
    stream: np.random.RandomState,
    item: np.ndarray,
    options: MaskingOptions,
    mask_idx: int,
    pad_idx: int,
    replacements: np.ndarray | None,
    begins: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of ``item``, int64 (T,) each.

    Args:
        stream: freshly seeded for this sequence.
        item: token ids, int64 (T,); any of them may be masked, bos and eos too.
        mask_idx: what the source holds at masked positions.
        pad_idx: what the target holds where nothing is predicted.
        replacements: see `replacement_table`; needed when ``random_token_prob`` is positive.
        begins: (T,), non-zero where a word begins: mask whole words; None: mask tokens.
    """
    lengths = None if begins is None else word_lengths(begins)
    predicted = choose_units(stream, len(item) if lengths is None else len(lengths), options)
    kept, random = split_replaced(stream, predicted, options)
    hidden = predicted if kept is None else predicted ^ kept
    if lengths is not None:
        predicted, hidden = np.repeat(predicted, lengths), np.repeat(hidden, lengths)
        random = None if random is None else np.repeat(random, lengths)
    source = item.copy()
    source[hidden] = mask_idx
    if random is not None and replacements is not None:
        places = np.flatnonzero(random)
        source[places] = draw_replacements(stream, replacements, len(places))
    return source, np.where(predicted, item, pad_idx)


def mask_exactly(
    stream: np.random.RandomState,
    item: np.ndarray,
    options: MaskingOptions,
    mask_idx: int,
    pad_idx: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of ``item``, int64 (T,) each, with the same number of masks whatever is drawn.

    Geiping and Goldstein (Cramming, 2022): k = round(mask_prob * T) different places, any of them, are predicted. The
    first of them, up to round((1 - replaced) k), become the mask symbol, the next, up to round((1 - leave_unmasked) k),
    a random id of the whole vocabulary, specials included, and the last stay as they are.
    """
    count = round(options.mask_prob * len(item))
    places = stream.permutation(len(item))[:count]
    hidden, changed = round((1 - options.replaced_prob) * count), round((1 - options.leave_unmasked_prob) * count)
    source, target = item.copy(), np.full_like(item, pad_idx)
    target[places] = item[places]
    source[places[:hidden]] = mask_idx
    source[places[hidden:changed]] = stream.randint(vocab_size, size=max(changed - hidden, 0))
    return source, target


@dataclass
class _Masker:
    """Masks items of ``dataset`` and keeps the last pair, which source and target views read one after the other.

    The pair is keyed by epoch and index: an item never comes back with the mask of an earlier epoch.
    """

    dataset: Any
    vocab: Dictionary
    pad_idx: int
    mask_idx: int
    seed: int
    options: MaskingOptions
    skip_masking: bool
    freq_weighted_replacement: bool
    mask_whole_words: Any
    epoch: int = 0
    last: tuple[int, int, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Check the settings and make what follows from them; to be called after a change."""
        self.last = None
        options, words = self.options, self.mask_whole_words
        if options.exact and (words is not None or self.freq_weighted_replacement):
            raise ConfigError("mask_exact goes neither with mask_whole_words nor with freq_weighted_replacement")
        self.replacements = None
        if options.random_token_prob > 0.0 and not self.skip_masking and not options.exact:
            counts = self.vocab.count if self.freq_weighted_replacement else None
            self.replacements = replacement_table(counts, len(self.vocab), self.vocab.nspecial)
        self.word_begins = None if words is None else np.asarray(words)
        if self.word_begins is not None and len(self.word_begins) < len(self.vocab):
            raise DataError(
                f"mask_whole_words covers {len(self.word_begins)} symbols, but the dictionary has {len(self.vocab)}"
            )

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(source, target) of item ``index`` in the current epoch, int64 (T) each; do not change them."""
        last = self.last
        if last is not None and last[0] == self.epoch and last[1] == index:
            return last[2], last[3]
        epoch, item = self.epoch, self.dataset[index]
        if self.skip_masking:
            source = target = item.clone()
        else:
            source, target = self._mask(item.numpy(), epoch, index, self.options)
        self.last = (epoch, index, source, target)  # one assignment: threads see a whole pair
        return source, target

    def _mask(self, item: np.ndarray, epoch: int, index: int, options: MaskingOptions) -> tuple[Tensor, Tensor]:
        highest = item.max() if len(item) else 0
        if highest >= self.mask_idx and (item == self.mask_idx).any():
            raise DataError(
                f"sample #{index} already holds the mask symbol (id {self.mask_idx}): the data was made with another "
                "dictionary, or <mask> occurs in the text"
            )
        if highest >= len(self.vocab):
            raise DataError(
                f"sample #{index} holds the id {highest}, but the dictionary has only {len(self.vocab)} symbols: "
                "dict.txt does not fit the data, or they are damaged (fairseq-validate-data tells); use the one they were made with"
            )
        stream = legacy_generator(self.seed, epoch, index)
        if options.exact:
            source, target = mask_exactly(stream, item, options, self.mask_idx, self.pad_idx, len(self.vocab))
        else:
            begins = None if self.word_begins is None else self.word_begins[item]
            source, target = mask_sequence(
                stream, item, options, self.mask_idx, self.pad_idx, self.replacements, begins
            )
        return torch.from_numpy(source), torch.from_numpy(target)


class _Setting:
    """An attribute of a `MaskTokensDataset` that is kept by its masker, which sources and targets share.

    ``name`` is that of the masking option, for those that are options.
    """

    def __init__(self, name: str | None = None) -> None:
        self.option = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        masker = instance._masker
        return getattr(masker, self.name) if self.option is None else getattr(masker.options, self.option)

    def __set__(self, instance: Any, value: Any) -> None:
        masker = instance._masker
        if self.option is None:
            setattr(masker, self.name, value)
        else:
            masker.options = replace(masker.options, **{self.option: value})
        masker.settle()


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
        mask_prob: fraction of the tokens to predict, above 0 and below 1. Any token may be masked, bos and eos too.
        leave_unmasked_prob: fraction of these that stay as they are in the source.
        random_token_prob: fraction of these that become random tokens in the source.
        freq_weighted_replacement: draw random tokens by their dictionary counts rather than uniformly.
        mask_whole_words: non-zero where a symbol of the vocabulary begins a word (V); mask words instead of tokens.
        mask_multiple_length: tokens (words) masked in a row.
        mask_stdev: standard deviation of that length; 0: constant.
        skip_masking: source and target are both a copy of the item.
        mask_exact: the same number of masks in all sequences of a length (`mask_exactly`); single tokens only.

    All of these are attributes too; a new value holds from the next item on, for sources and targets alike.

    The other masks are those of fairseq 0.12 bit for bit (`fairseq.data.masking`). Deliberate deviation: the original cached
    items by index only and could return the mask of the previous epoch at an epoch's end.
    """

    vocab = _Setting()
    pad_idx = _Setting()
    mask_idx = _Setting()
    seed = _Setting()
    skip_masking = _Setting()
    freq_weighted_replacement = _Setting()
    mask_whole_words = _Setting()
    epoch = _Setting()
    mask_prob = _Setting("mask_prob")
    leave_unmasked_prob = _Setting("leave_unmasked_prob")
    random_token_prob = _Setting("random_token_prob")
    mask_multiple_length = _Setting("mask_multiple_length")
    mask_stdev = _Setting("mask_stdev")
    mask_exact = _Setting("exact")

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
        mask_exact: bool = False,
    ) -> None:
        super().__init__(dataset)
        self.return_masked_tokens = return_masked_tokens
        options = MaskingOptions(
            mask_prob, leave_unmasked_prob, random_token_prob, mask_multiple_length, mask_stdev, mask_exact
        )
        self._masker = _Masker(
            dataset,
            vocab,
            pad_idx,
            mask_idx,
            seed,
            options,
            skip_masking,
            freq_weighted_replacement,
            mask_whole_words,
        )

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._masker.epoch = epoch

    @property
    def weights(self) -> np.ndarray:
        """Probabilities (V) of the random tokens."""
        counts = self.vocab.count if self.freq_weighted_replacement else None
        return replacement_weights(counts, len(self.vocab), self.vocab.nspecial)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # masking changes no sizes

    def __getitem__(self, index: int) -> Tensor:
        index = int(index)
        return self._masker.pair(index if index >= 0 else index + len(self))[self.return_masked_tokens]


def get_whole_word_mask(args: Any, dictionary: Dictionary) -> torch.Tensor | None:
    """1 for each symbol that begins a word: a uint8 tensor (V); None when ``args`` names no bpe.

    ``args`` is an encoder, its settings, a name or a parsed Namespace, see `build_bpe`. Specials, ``madeupword`` rows
    and symbols that the encoder cannot decode count as words of their own.
    """
    bpe = build_bpe(args)
    if bpe is None:
        return None

    def is_beginning_of_word(idx: int) -> bool:
        symbol = dictionary[idx]
        if idx < dictionary.nspecial or symbol.startswith("madeupword"):
            return True
        try:
            return bool(bpe.is_beginning_of_word(symbol))
        except ValueError:
            return True

    return torch.ByteTensor([is_beginning_of_word(idx) for idx in range(len(dictionary))])
