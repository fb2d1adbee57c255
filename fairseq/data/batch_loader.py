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

    def open(self, batches: Sequence[Any], epoch: int | None) -> Iterator[Any]:
        """Read ``batches`` in order; workers start now. ``epoch`` is sent to persistent workers (None: unchanged)."""
        self._order.batches, self._order.epoch = batches, epoch
        return _unwrapped(iter(self._loader))


def _unwrapped(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; an error of a worker that is the user's to fix comes without the worker's traceback."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except FairseqError as error:
            sentence = str(error)
            if "Original Traceback" in sentence:
                last = sentence.strip().rsplit("\n", 1)[-1]
                raise type(error)(last.split(": ", 1)[-1]) from None
            raise
        yield batch
