"""The batches of one epoch after the other: shuffled, shared out to the processes of a run, resumable.

The order of an epoch is a pure function of (seed, epoch), so a run continues at any batch without reading those before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fairseq.data.batching import OrderedBatches
from fairseq.data.counting import (
    CountingIterator,
    GroupedIterator,
    GrowingGroups,
    ShardBatches,
    ShardedIterator,
    ceil_div,
)
from fairseq.data.loading import BatchLoader, BufferedIterator, Reading
from fairseq.errors import CheckpointError, DataError
from fairseq.rng import legacy_permutation

__all__ = [
    "BufferedIterator",
    "CountingIterator",
    "EpochBatchIterating",
    "EpochBatchIterator",
    "GroupedIterator",
    "GrowingGroups",
    "ShardedIterator",
    "epoch_order",
    "shard_order",
]

MAX_BUFFER = 20


class EpochBatchIterating:
    """Base class of epoch iterators, by which old code tells them from others."""


def epoch_order(
    batches: int, seed: int, epoch: int, shuffle: bool, num_shards: int = 1, grouped: bool = False
) -> np.ndarray:
    """Order of all batches in an epoch, for every shard alike: int64 positions.

    It is the order into which ``np.random.shuffle`` would bring the list of them. ``grouped``: neighbours that go to
    the shards at one step stay together; a last group that is not full is dropped (as the original does).
    """
    if not shuffle:
        return np.arange(batches, dtype=np.int64)
    if not grouped:
        return legacy_permutation(batches, seed + epoch)
    groups = legacy_permutation(batches // num_shards, seed + epoch)
    return (groups[:, None] * num_shards + np.arange(num_shards)).ravel()


def shard_order(order: np.ndarray, num_shards: int, shard_id: int) -> np.ndarray:
    """The positions of one shard: every ``num_shards``-th, filled up to one length with empty batches."""
    own = order[shard_id::num_shards]
    missing = ceil_div(len(order), num_shards) - len(own)
    return np.concatenate([own, np.full(missing, OrderedBatches.EMPTY)]) if missing else own


class EpochBatchIterator(EpochBatchIterating):
    """Batches of ``dataset``, epoch by epoch.

    Args:
        dataset: items by index; told the epoch by ``set_epoch``.
        collate_fn: list of items to batch.
        batch_sampler: the batches (sequences of indices), or a function ``(dataset, epoch)`` that makes them anew for
            each epoch.
        seed: of the shuffle; epoch e uses ``seed + e``.
        num_shards, shard_id: this process takes every ``num_shards``-th batch.
        num_workers: processes that read; 0: this one.
        epoch: the first epoch (1 at least).
        buffer_size: batches made ahead by a thread (20 at most); 0: none.
        timeout: seconds to wait for a worker; 0: for ever.
        disable_shuffling: never shuffle.
        skip_remainder_batch: leave out the last batch of each epoch, full or not.
        grouped_shuffling: shuffle groups of ``num_shards`` batches.
        reuse_dataloader: as in the original, whose loader outlives the epoch: whether to shuffle is decided once, by
            the first epoch that starts here (so that a curriculum never begins to shuffle).
        persistent_workers: keep the workers; they are told the epoch with every batch.

    State: ``{"version": 2, "epoch", "iterations_in_epoch", "shuffle"}``, where iterations are batches of a shard, before
    grouping by update_freq (and ``fix_batches_to_gpus`` when it is on); with several shards also ``batches_in_epoch``,
    those of all shards, which is where any other number of shards continues.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        batch_sampler: Sequence[Any] | Callable[[Any, int], Sequence[Any]],
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        buffer_size: int = 0,
        timeout: int = 0,
        disable_shuffling: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        reuse_dataloader: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        if not 0 <= shard_id < num_shards:
            raise ValueError(f"shard_id must be between 0 and num_shards ({num_shards}), but is {shard_id} instead")
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.batch_sampler = batch_sampler
        self._frozen_batches: Sequence[Any] | None = None if callable(batch_sampler) else batch_sampler
        self.seed, self.num_shards, self.shard_id = seed, num_shards, shard_id
        self.num_workers = num_workers
        self.epoch = max(epoch, 1)
        # A buffer of 20 batches hides any stall; more would only take memory.
        self.buffer_size = min(buffer_size, MAX_BUFFER)
        self.timeout = timeout
        self.disable_shuffling = disable_shuffling
        self.skip_remainder_batch = skip_remainder_batch
        self.grouped_shuffling = grouped_shuffling
        self.reuse_dataloader, self.persistent_workers = reuse_dataloader, persistent_workers
        self.shuffle = not disable_shuffling
        self.fix_batches_to_gpus = False
        self._current: CountingIterator | None = None
        self._pending: CountingIterator | None = None
        self._pending_offset = 0
        self._dataset_epoch: int | None = None
        self._loader: BatchLoader | None = None
        self._supports_prefetch = getattr(dataset, "supports_prefetch", False)

    @property
    def frozen_batches(self) -> Sequence[Any]:
        """All batches of the epoch, unshuffled and of all shards."""
        if self._frozen_batches is None:
            assert callable(self.batch_sampler)
            self._frozen_batches = self.batch_sampler(self.dataset, self.epoch)
        return self._frozen_batches

    @property
    def first_batch(self) -> Any:
        """Batch 0 (the shortest items, when sorted by size), collated; serves as the dummy of empty batches."""
        if len(self.frozen_batches) == 0:
            raise DataError(
                "The dataset is empty. This could indicate that all elements in the dataset have been skipped. "
                "Try increasing the max number of allowed tokens or using a larger dataset."
            )
        if not getattr(self.dataset, "supports_fetch_outside_dataloader", True):
            return "DUMMY"
        return self.collate_fn([self.dataset[i] for i in self.frozen_batches[0]])

    def __len__(self) -> int:
        return ceil_div(len(self.frozen_batches), self.num_shards)

    @property
    def n(self) -> int:
        return self.iterations_in_epoch

    @property
    def next_epoch_idx(self) -> int:
        """The epoch that `next_epoch_itr` will start (or continue, after a resume)."""
        if self._pending is None and self._current is not None and self.end_of_epoch():
            return self.epoch + 1
        return self.epoch

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True
    ) -> CountingIterator:
        """The batches of the next epoch, or those left of the resumed one.

        Args:
            shuffle: mix the batches (a resumed epoch keeps what its checkpoint says).
            fix_batches_to_gpus: shard before shuffling, so that a rank reads the same items in each epoch; only for
                data that is prefetched into memory.
            set_dataset_epoch: tell the dataset the epoch (validation does not, so that its masks stay the same).
        """
        previous, self.epoch = self.epoch, self.next_epoch_idx
        if set_dataset_epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
            self._dataset_epoch = self.epoch
            if self._loader is not None:
                self._loader.epoch = self.epoch
        pending, self._pending = self._pending, None
        if pending is not None and fix_batches_to_gpus != self.fix_batches_to_gpus:
            # Older checkpoints do not store it: the configuration says how this epoch was sharded.
            self.fix_batches_to_gpus = fix_batches_to_gpus
            pending = self._epoch_iterator(self._pending_offset)
        if pending is None:
            if callable(self.batch_sampler) and previous != self.epoch:
                self._frozen_batches = None
            if self._loader is None or not self.reuse_dataloader:
                self.shuffle = shuffle and not self.disable_shuffling
            self.fix_batches_to_gpus = fix_batches_to_gpus
            pending = self._epoch_iterator(0)
        self._current = pending
        assert self._current is not None  # an epoch without batches has an empty iterator, only an offset gives None
        return self._current

    def end_of_epoch(self) -> bool:
        return self._current is not None and not self._current.has_next()

    @property
    def iterations_in_epoch(self) -> int:
        iterator = self._current if self._pending is None else self._pending
        return 0 if iterator is None else iterator.n

    @property
    def batches_in_epoch(self) -> int:
        """Batches of all shards before the next one."""
        iterator = self._current if self._pending is None else self._pending
        return 0 if iterator is None else iterator.position

    def state_dict(self) -> dict[str, Any]:
        """Position to continue from; at the end of an epoch, the beginning of the next one."""
        finished = self._pending is None and self.end_of_epoch()
        position = 0 if finished else self.batches_in_epoch
        state: dict[str, Any] = {
            "version": 2,
            "epoch": self.epoch + 1 if finished else self.epoch,
            "iterations_in_epoch": ceil_div(position, self.num_shards),
            "shuffle": self.shuffle,
        }
        if self.num_shards > 1 and position > 0:
            state["batches_in_epoch"] = position
        if self.fix_batches_to_gpus:
            state["fix_batches_to_gpus"] = True
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there; nothing is read before the first batch is asked for.

        A state without ``batches_in_epoch`` is that of as many shards as there are here. Raises CheckpointError when the
        epoch has no such batch (other data or batch size).
        """
        self.epoch = state_dict["epoch"]
        self._current = self._pending = None
        if callable(self.batch_sampler):
            self._frozen_batches = None
        offset = state_dict.get("batches_in_epoch", state_dict.get("iterations_in_epoch", 0) * self.num_shards)
        if offset <= 0:
            return
        self.shuffle = state_dict.get("shuffle", True) and not self.disable_shuffling
        self.fix_batches_to_gpus = state_dict.get("fix_batches_to_gpus", False)
        self._pending_offset = offset
        self._pending = self._epoch_iterator(offset)
        if self._pending is not None:
            return
        if state_dict.get("version", 1) == 1:
            self.epoch += 1  # files without a version store the end of an epoch like this
            return
        raise CheckpointError(
            f"Cannot resume training due to dataloader mismatch: the checkpoint has consumed {offset} batches of epoch "
            f"{self.epoch}, but that epoch now has {len(self.frozen_batches)}; restore data and batch size, or "
            "start the epoch anew with `--reset-dataloader`"
        )

    def _epoch_iterator(self, first: int) -> CountingIterator | None:
        """This shard's batches of the epoch from position ``first`` of all on; None when there are no more than that."""
        order = self._order()
        if 0 < first >= len(order):
            return None
        end = max(len(order) - self.skip_remainder_batch, first)
        batches = OrderedBatches(self.frozen_batches, self._own(order, first, end))
        if self._loader is None or not self.persistent_workers:
            self._loader = BatchLoader(
                self.dataset,
                self.collate_fn,
                num_workers=self.num_workers,
                timeout=self.timeout,
                persistent_workers=self.persistent_workers,
            )
            self._loader.epoch = self._dataset_epoch
        reading: Any = Reading(self._loader, batches)
        if self.buffer_size > 0:
            reading = BufferedIterator(self.buffer_size, reading)
        return ShardBatches(reading, first, end, self.num_shards, self.shard_id, self.skip_remainder_batch)

    @property
    def _fixed(self) -> bool:
        return self._supports_prefetch and self.fix_batches_to_gpus

    def _order(self) -> np.ndarray:
        """The batches of all shards in this epoch, by position."""
        shuffle = self.shuffle and not self._fixed
        return epoch_order(
            len(self.frozen_batches), self.seed, self.epoch, shuffle, self.num_shards, self.grouped_shuffling
        )

    def _own(self, order: np.ndarray, first: int, end: int) -> np.ndarray:
        """Which batches this shard reads, in order."""
        if self._fixed:
            own = shard_order(order, self.num_shards, self.shard_id)
            if self.shuffle:
                own = own[epoch_order(len(own), self.seed + self.shard_id, self.epoch, True)]
            own = own[ceil_div(first, self.num_shards) :]
        else:
            own = shard_order(order[first:end], self.num_shards, self.shard_id)
        if self._supports_prefetch:
            batches = OrderedBatches(self.frozen_batches, own)
            self.dataset.prefetch(np.concatenate([np.empty(0, np.int64), *map(np.asarray, batches)]).astype(np.int64))
        return own
