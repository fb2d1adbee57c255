"""Datasets of the original that plugins wrap theirs in and nothing here uses: other tokens, other mixes, streams."""

from __future__ import annotations

import itertools
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from fairseq.compat.tensors import get_bucketed_sizes, get_buckets
from fairseq.data.batching import collate_tokens
from fairseq.data.datasets import BaseWrapperDataset, CompositeDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.iterators import CountingIterator, EpochBatchIterating
from fairseq.errors import ConfigError
from fairseq.rng import numpy_seed

logger = logging.getLogger(__name__)


class ReplaceDataset(BaseWrapperDataset):
    """Items (one tensor, or several) with some tokens replaced.

    ``replace_map``: token -> token, one after the other; ``offsets``: for each tensor of an item the place from which on
    that is done, negative ones counted from the end.
    """

    def __init__(self, dataset: Any, replace_map: Mapping[int, int], offsets: Sequence[int]) -> None:
        if not len(replace_map):
            raise ConfigError("ReplaceDataset needs at least one token to replace")
        super().__init__(dataset)
        self.replace_map = replace_map
        self.offsets = offsets

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        parts = item if isinstance(item, tuple) else (item,)
        replaced = tuple(self._replace(part, offset) for part, offset in zip(parts, self.offsets, strict=False))
        return replaced if isinstance(item, tuple) else replaced[0]

    def _replace(self, tokens: Tensor, offset: int) -> Tensor:
        part = tokens[offset:] if offset >= 0 else tokens[:offset]
        new = part.clone()
        for old_token, token in self.replace_map.items():
            new.masked_fill_(new == old_token, token)
        return torch.cat([tokens[:offset], new]) if offset >= 0 else torch.cat([new, tokens[offset:]])


class PrependDataset(BaseWrapperDataset):
    """(Source, target) items whose first source token is ``prepend_getter(dataset, index)``."""

    def __init__(
        self, dataset: Any, prepend_getter: Callable[[Any, int], int], ensure_first_token_is: int | None = None
    ) -> None:
        super().__init__(dataset)
        self.prepend_getter = prepend_getter
        self.ensure_first_token = ensure_first_token_is

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = self.dataset[index]
        several = isinstance(item, tuple)
        source = item[0] if several else item
        if self.ensure_first_token is not None and source[0] != self.ensure_first_token:
            raise ValueError(f"item {index} begins with token {int(source[0])}, not with {self.ensure_first_token}")
        source[0] = self.prepend_getter(self.dataset, index)
        return (source, *item[1:]) if several else source


class ColorizeDataset(BaseWrapperDataset):
    """Adds ``net_input.colors``, one number per item, to every batch."""

    def __init__(self, dataset: Any, color_getter: Callable[[Any, int], int]) -> None:
        super().__init__(dataset)
        self.color_getter = color_getter

    def collater(self, samples: list[Any]) -> Any:
        batch = super().collater(samples)
        if len(batch) > 0:
            colors = [self.color_getter(self.dataset, int(index)) for index in batch["id"]]
            batch["net_input"]["colors"] = torch.tensor(colors, dtype=torch.long)
        return batch


class BucketPadLengthDataset(BaseWrapperDataset):
    """Items padded to one of ``num_buckets`` lengths, so that batches have few shapes."""

    def __init__(
        self,
        dataset: Any,
        sizes: Any,
        num_buckets: int,
        pad_idx: int,
        left_pad: bool,
        tensor_key: str | None = None,
    ) -> None:
        super().__init__(dataset)
        self.pad_idx = pad_idx
        self.left_pad = left_pad
        self.tensor_key = tensor_key
        if num_buckets < 1:
            raise ConfigError(f"num_buckets must be at least 1, but is {num_buckets}")
        self.buckets = get_buckets(sizes, num_buckets)
        self._bucketed_sizes = get_bucketed_sizes(sizes, self.buckets)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        size = int(self._bucketed_sizes[index])
        if self.tensor_key is None:
            return self._pad(item, size)
        return {**item, self.tensor_key: self._pad(item[self.tensor_key], size)}

    def _pad(self, tokens: Tensor, size: int) -> Tensor:
        return collate_tokens([tokens], self.pad_idx, left_pad=self.left_pad, pad_to_length=size)[0]

    @property
    def sizes(self) -> Any:
        return self._bucketed_sizes

    def num_tokens(self, index: int) -> int:
        return int(self._bucketed_sizes[index])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self._bucketed_sizes[indices]

    def size(self, index: int) -> Any:
        return int(self._bucketed_sizes[index])


class TensorBucketPadLengthDataset(BucketPadLengthDataset):
    """The same for items that are tensors."""


class PaddingMaskDataset(BaseWrapperDataset):
    """(B, T) masks for batches of tensors of tokens, True = padding, which comes first where ``left_pad``."""

    def __init__(self, dataset: Any, left_pad: bool) -> None:
        super().__init__(dataset)
        self.left_pad = left_pad

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros_like(self.dataset[index]).bool()

    def collater(self, samples: list[Tensor]) -> Tensor:
        return collate_tokens(samples, True, left_pad=self.left_pad)


class LeftPaddingMaskDataset(PaddingMaskDataset):
    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset, left_pad=True)


class _SideBySide(CompositeDataset):
    """An item of each of several datasets, by name; those that are shorter than the longest begin again."""

    datasets: Mapping[str, Any]
    _order: dict[str, np.ndarray] | None = None

    @property
    def parts(self) -> Iterable[Any]:
        return self.datasets.values()

    def _map_index(self, key: str, index: int) -> int:
        if self._order is None:
            raise RuntimeError(f"{type(self).__name__}.ordered_indices() must be called before items are read")
        order = self._order[key]
        return int(order[index % len(order)])

    def __len__(self) -> int:
        return max(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Any:
        return OrderedDict((key, part[self._map_index(key, index)]) for key, part in self.datasets.items())

    def ordered_indices(self) -> np.ndarray:
        if self._order is None:
            self._order = OrderedDict((key, part.ordered_indices()) for key, part in self.datasets.items())
        return np.arange(len(self))

    def num_tokens(self, index: int) -> int:
        return max(part.num_tokens(self._map_index(key, index)) for key, part in self.datasets.items())

    def prefetch(self, indices: Sequence[int]) -> None:
        for key, part in self.datasets.items():
            if getattr(part, "supports_prefetch", False):
                part.prefetch([self._map_index(key, index) for index in indices])


class RoundRobinZipDatasets(_SideBySide):
    """Items of several datasets side by side, as long as the longest; with ``eval_key`` an item is that dataset's alone."""

    def __init__(self, datasets: Mapping[str, Any], eval_key: str | None = None) -> None:
        super().__init__()
        self.datasets = OrderedDict(datasets) if isinstance(datasets, dict) else datasets
        self.eval_key = eval_key
        self.longest_dataset_key = max(datasets, key=lambda key: len(datasets[key]))
        self.longest_dataset = datasets[self.longest_dataset_key]

    def __len__(self) -> int:
        return len(self.longest_dataset if self._order is None else self._order[self.longest_dataset_key])

    def __getitem__(self, index: int) -> Any:
        if self.eval_key is not None:
            return self.datasets[self.eval_key][self._map_index(self.eval_key, index)]
        return super().__getitem__(index)

    def collater(self, samples: list[Any]) -> Any:
        if len(samples) == 0:
            return None
        if self.eval_key is not None:
            return self.datasets[self.eval_key].collater(samples)
        return OrderedDict(
            (key, part.collater([sample[key] for sample in samples])) for key, part in self.datasets.items()
        )

    def size(self, index: int) -> Any:
        return {key: part.size(self._map_index(key, index)) for key, part in self.datasets.items()}

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any = None) -> tuple[np.ndarray, Any]:
        """Each part is filtered by its own limit; the length becomes that of the longest that is left."""
        ignored: list[int] = []
        kept: dict[str, np.ndarray] = OrderedDict()
        for key, part in self.datasets.items():
            limit = max_sizes[key] if isinstance(max_sizes, Mapping) else max_sizes
            kept[key], out = part.filter_indices_by_size(part.ordered_indices(), limit)
            ignored += list(out)
        self._order = kept
        return np.arange(len(self)), ignored


class MultiCorpusSampledDataset(_SideBySide):
    """Items of several datasets side by side, of which every batch shows one, chosen by ``sampling_func(keys)``."""

    def __init__(self, datasets: Mapping[str, Any], sampling_func: Callable[[list[str]], str] | None = None) -> None:
        super().__init__()
        self.datasets = OrderedDict(datasets)
        self.sampling_func = sampling_func or uniform_sampler
        self.total_num_instances = len(self)

    def collater(self, samples: list[Any]) -> Any:
        if len(samples) == 0:
            return None
        chosen = self.sampling_func(list(self.datasets))
        return self.datasets[chosen].collater([sample[chosen] for sample in samples])

    def size(self, index: int) -> int:
        return max(part.size(self._map_index(key, index)) for key, part in self.datasets.items())


def uniform_sampler(keys: list[str]) -> str:
    return np.random.choice(keys, 1).item()


class MultiCorpusDataset(CompositeDataset):
    """Several datasets of which each epoch has a share drawn by ``distribution``, in one order from ``seed`` and epoch.

    Every item of the larger parts may be drawn only once in an epoch: the length is what that allows. Batches mix the
    parts, so that ``distributed_rank``, which the original needed for others, says nothing.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        distribution: Sequence[float],
        seed: int,
        sort_indices: bool = False,
        batch_sample: bool = False,
        distributed_rank: int | None = None,
    ) -> None:
        super().__init__(datasets.values())
        if batch_sample:
            raise ConfigError("MultiCorpusDataset mixes its parts within batches: batch_sample must be False")
        if len(distribution) != len(datasets):
            raise ConfigError(
                f"{len(datasets)} datasets need as many fractions, but distribution has {len(distribution)}"
            )
        self.datasets = OrderedDict(datasets)
        self.distribution = np.asarray(distribution, dtype=float) / float(np.sum(distribution))
        self.seed = seed
        self.sort_indices = sort_indices
        self.dataset_list = list(self.datasets.values())
        ends = np.cumsum([0, *(len(part) for part in self.dataset_list)])
        self.dataset_offsets = ends[:-1]
        self.total_num_instances = int(ends[-1])

    def __len__(self) -> int:
        return self.total_num_instances

    def ordered_indices(self) -> np.ndarray:
        """A share of each part, shuffled anew each epoch; sorted by size where that was asked for."""
        with numpy_seed(self.seed, getattr(self, "epoch", 1)):
            lengths = np.array([len(part) for part in self.dataset_list])
            total = int(np.min(lengths[self.distribution > 0] / self.distribution[self.distribution > 0]))
            counts = (total * self.distribution).astype(int)
            shares = [
                np.random.permutation(length)[:count] + offset
                for length, count, offset in zip(lengths, counts, self.dataset_offsets, strict=True)
            ]
            indices = np.random.permutation(np.concatenate(shares))
        if self.sort_indices:
            indices = np.array(sorted(indices, key=lambda index: self.num_tokens(int(index))))
        return indices

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return False

    def _map_index(self, index: int) -> tuple[int, str]:
        """(Place in its part, name of that part)."""
        number = int(np.searchsorted(self.dataset_offsets, index, side="right")) - 1
        return int(index - self.dataset_offsets[number]), list(self.datasets)[number]

    def __getitem__(self, index: int) -> Any:
        place, key = self._map_index(index)
        item = self.datasets[key][place]
        if isinstance(item, dict):
            item["full_id"] = item.get("id", index)
        return item

    def collater(self, samples: list[Any]) -> Any:
        return self.dataset_list[0].collater(samples) if len(samples) else None

    def num_tokens(self, index: int) -> int:
        place, key = self._map_index(index)
        return self.datasets[key].num_tokens(place)

    def size(self, index: int) -> Any:
        place, key = self._map_index(index)
        return self.datasets[key].size(place)


class TruncatedDictionary:
    """The first ``length`` symbols of a dictionary; all others are unknown."""

    def __init__(self, wrapped_dict: Dictionary, length: int) -> None:
        self.wrapped_dict = wrapped_dict
        self.length = min(len(wrapped_dict), length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> str:
        return self.wrapped_dict[index] if index < self.length else self.wrapped_dict.unk_word

    def index(self, symbol: str) -> int:
        index = self.wrapped_dict.index(symbol)
        return index if index < self.length else self.wrapped_dict.unk()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.wrapped_dict, name)


class EpochListening:
    """What is told of every epoch."""

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True

    def set_epoch(self, epoch: int) -> None:
        """Called with the number of the epoch (from 1)."""


class FairseqIterableDataset(torch.utils.data.IterableDataset, EpochListening):
    """A dataset that is a stream: ``__iter__`` gives batches, as `StreamingEpochBatchIterator` wants them."""

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError


class _OpenEnded(CountingIterator):
    """Elements of a source whose number is not known: it is asked for one ahead."""

    _ahead: Any = ()

    def __init__(self, iterable: Any) -> None:
        super().__init__(iterable, start=0, total=sys.maxsize)

    def __len__(self) -> int:
        raise TypeError("the number of batches of a stream is not known")

    def has_next(self) -> bool:
        if self._ahead == ():
            self._itr = iter(self._source) if self._itr is None else self._itr
            try:
                self._ahead = [next(self._itr)]
            except StopIteration:
                self._ahead = None
        return self._ahead is not None

    def __next__(self) -> Any:
        if not self.has_next() or self.n >= self.total:
            raise StopIteration
        [element], self._ahead = self._ahead, ()
        self.n += 1
        return element


class StreamingEpochBatchIterator(EpochBatchIterating):
    """An epoch of a `FairseqIterableDataset`; it cannot go on in the middle of one.

    Every epoch has new workers, which read ahead: ``persistent_workers`` and ``buffer_size`` say nothing.
    """

    def __init__(
        self,
        dataset: Any,
        max_sentences: int = 1,
        collate_fn: Callable[[Any], Any] | None = None,
        epoch: int = 1,
        num_workers: int = 0,
        buffer_size: int = 0,
        timeout: int = 0,
        persistent_workers: bool = False,
        num_shards: int = 1,
        shard_id: int = 0,
        **unused: Any,
    ) -> None:
        if not isinstance(dataset, torch.utils.data.IterableDataset):
            raise ConfigError(f"a stream must be a FairseqIterableDataset, but is a {type(dataset).__name__}")
        self.dataset = dataset
        self.max_sentences = max_sentences
        self.collate_fn = collate_fn
        self.epoch = max(epoch, 1)
        self.num_workers = num_workers
        self.timeout = timeout if num_workers > 0 else 0
        self.shard = (num_shards, shard_id)
        self._current: CountingIterator | None = None

    @property
    def next_epoch_idx(self) -> int:
        return self.epoch + 1 if self._current is not None and self.end_of_epoch() else self.epoch

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True, **unused: Any
    ) -> CountingIterator:
        self.epoch = self.next_epoch_idx
        if set_dataset_epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        loader: Iterable[Any] = torch.utils.data.DataLoader(
            self.dataset,
            batch_size=self.max_sentences,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            timeout=self.timeout,
        )
        shards, shard = self.shard
        self._current = _OpenEnded(loader if shards == 1 else itertools.islice(loader, shard, None, shards))
        return self._current

    def end_of_epoch(self) -> bool:
        return self._current is not None and not self._current.has_next()

    @property
    def iterations_in_epoch(self) -> int:
        return 0 if self._current is None else self._current.n

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
