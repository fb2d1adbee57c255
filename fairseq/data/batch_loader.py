"""`BatchLoader`: collated batches in a given order, read by this process or by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.data

from fairseq.errors import FairseqError


class _EpochDataset(torch.utils.data.Dataset):
    """What workers that outlive an epoch hold: every request names the epoch it belongs to.

    Such workers keep the data set as it was when they were forked; without this, masks would stay those of the first
    epoch for the whole run.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.epoch: int | None = None

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, request: tuple[int | None, Sequence[int]]) -> list[Any]:
        epoch, batch = request
        if epoch is not None and epoch != self.epoch:
            self.dataset.set_epoch(epoch)
            self.epoch = epoch
        return [self.dataset[i] for i in batch]


class _Order:
    """The batch sampler of a loader: whatever order was set last. An iterator keeps the order it was started with."""

    def __init__(self) -> None:
        self.batches: Sequence[Any] = ()
        self.epoch: int | None = None
        self.sends_epoch = False

    def __iter__(self) -> Iterator[Any]:
        batches, epoch = self.batches, self.epoch
        return ((epoch, batch) for batch in batches) if self.sends_epoch else iter(batches)

    def __len__(self) -> int:
        return len(self.batches)


class BatchLoader:
    """A torch DataLoader that can be read again in another order.

    Args:
        dataset: items by index.
        collate_fn: list of items to batch.
        num_workers: worker processes (torch gives each of them one thread); 0: this process.
        timeout: seconds to wait for a worker; 0: for ever.
        persistent_workers: keep the workers between epochs instead of forking them anew.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Any],
        num_workers: int = 0,
        timeout: int = 0,
        persistent_workers: bool = False,
    ) -> None:
        self.epoch: int | None = None
        """The data set's epoch, which persistent workers are sent; None: theirs stays as it is."""
        self._order = _Order()
        self._order.sends_epoch = persistent_workers and num_workers > 0 and hasattr(dataset, "set_epoch")
        self._loader = torch.utils.data.DataLoader(
            _EpochDataset(dataset) if self._order.sends_epoch else dataset,
            collate_fn=collate_fn,
            batch_sampler=self._order,  # type: ignore[arg-type]
            num_workers=num_workers,
            # torch warns about pinned memory where there is no device to pin it for.
            pin_memory=torch.cuda.is_available(),
            timeout=timeout if num_workers > 0 else 0,
            persistent_workers=persistent_workers and num_workers > 0,
        )

    def open(self, batches: Sequence[Any]) -> Iterator[Any]:
        """Read ``batches`` in order; workers start now."""
        if len(batches) == 0:
            return iter(())
        self._order.batches, self._order.epoch = batches, self.epoch
        return _all(iter(self._loader), len(batches))


class Reading:
    """Batches that a loader will read when this is iterated: workers start then, and see the epoch set until then."""

    def __init__(self, loader: BatchLoader, batches: Sequence[Any]) -> None:
        self._loader, self._batches = loader, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return self._loader.open(self._batches)


def _all(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """The ``count`` batches; what a worker found wrong comes without the worker's traceback."""
    for position in range(count):
        failure: FairseqError | None = None
        try:
            batch = next(batches)
        except FairseqError as error:
            failure = _without_traceback(error)
            if failure is None:
                raise
        if failure is not None:
            # Outside the handler: the traceback there would keep the loader and its processes alive.
            del batches
            raise failure
        if position == count - 1:
            # Reaching its end makes the loader stop its workers now. Readers count batches and never ask for one more;
            # workers still alive when those of the next epoch are forked delay these by seconds.
            next(batches, None)
        yield batch


def _without_traceback(error: FairseqError) -> FairseqError | None:
    """The error as the worker raised it, or None when it was raised in this process."""
    message = str(error)
    if "Original Traceback" not in message:
        return None
    # torch's frame of the re-raise refers to its own exception: a cycle that would keep loader and workers alive.
    error.__traceback__ = None
    last_line = message.strip().rsplit("\n", 1)[-1]
    return type(error)(last_line.split(": ", 1)[-1])
