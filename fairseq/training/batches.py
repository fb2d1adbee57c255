"""The batches of a subset as the configuration asks for them, and the progress lines over them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fairseq.distributed import group as distributed
from fairseq.errors import ConfigError, DataError
from fairseq.logging.progress import BaseProgressBar, progress_bar

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models.fairseq_model import BaseFairseqModel
    from fairseq.tasks.fairseq_task import FairseqTask


def seed_run(cfg: FairseqConfig) -> None:
    """Seed the global generators of NumPy and torch."""
    seed = cfg.common.seed
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be from 0 to 2**32 - 1, but is {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)


def subset_names(cfg: FairseqConfig) -> list[str]:
    """The validation subsets; the first one drives best checkpoint, schedule and patience."""
    return [name.strip() for name in cfg.dataset.valid_subset.split(",")]


def batch_iterator(cfg: FairseqConfig, task: FairseqTask, subset: str, **own: Any) -> EpochBatchIterator:
    """``task.get_batch_iterator`` of the loaded ``subset``; ``own`` are the arguments that differ between the callers.

    Raises DataError when no batch is left.
    """
    data = cfg.dataset
    iterator = task.get_batch_iterator(
        dataset=task.dataset(subset),
        required_batch_size_multiple=data.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_shards=distributed.get_data_parallel_world_size(),
        shard_id=distributed.get_data_parallel_rank(),
        num_workers=data.num_workers,
        data_buffer_size=data.data_buffer_size or 0,
        **own,
    )
    if len(iterator) == 0:
        raise DataError(
            f"The dataset is empty. No sample of {subset!r} is left after dropping those longer than the limits; check "
            "--max-positions, --max-tokens and --tokens-per-sample"
        )
    return iterator


def train_batches(
    cfg: FairseqConfig, task: FairseqTask, model: BaseFairseqModel, epoch: int, disable_iterator_cache: bool
) -> EpochBatchIterator:
    """The batches of the loaded training data in ``epoch`` (1-based); samples that are too long are skipped."""
    data = cfg.dataset
    return batch_iterator(
        cfg,
        task,
        data.train_subset,
        max_tokens=data.max_tokens,
        max_sentences=data.batch_size,
        max_positions=resolve_max_positions(task.max_positions(), model.max_positions(), data.max_tokens),
        ignore_invalid_inputs=True,
        epoch=epoch,
        disable_iterator_cache=disable_iterator_cache,
        skip_remainder_batch=cfg.optimization.skip_remainder_batch,
        grouped_shuffling=data.grouped_shuffling,
        update_epoch_batch_itr=data.update_epoch_batch_itr,
    )


def valid_batches(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: BaseFairseqModel,
    subset: str,
    max_tokens: int | None,
    max_sentences: int | None,
) -> EpochBatchIterator:
    """The batches of the validation ``subset``, always as in epoch 1."""
    return batch_iterator(
        cfg,
        task,
        subset,
        max_tokens=max_tokens,
        max_sentences=max_sentences,
        max_positions=resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
    )


def check_sample_sizes(task: FairseqTask, model: BaseFairseqModel, subset: str) -> None:
    """Raise DataError if ``subset`` has a sample that is too long."""
    dataset = task.dataset(subset)
    limit = resolve_max_positions(task.max_positions(), model.max_positions())
    task.filter_indices_by_size(np.arange(len(dataset)), dataset, limit)


def progress_of(
    cfg: FairseqConfig, batches: Any, epoch: int | None = None, prefix: str | None = None, run_name: str | None = None
) -> BaseProgressBar:
    """``batches`` in the bar that the configuration asks for; with ``run_name`` (training) tensorboard and wandb too.

    The first process alone prints.
    """
    common = cfg.common
    first = distributed.get_global_rank() == 0
    run_name = run_name if first else None
    return progress_bar(
        batches,
        log_format=common.log_format if first else "none",
        log_interval=common.log_interval,
        epoch=epoch,
        prefix=prefix,
        default_log_format="simple" if common.no_progress_bar else "tqdm",
        tensorboard_logdir=None if run_name is None else common.tensorboard_logdir,
        wandb_project=None if run_name is None else common.wandb_project,
        wandb_run_name=run_name,
    )


Limit = int | float | tuple | list | dict | None


def resolve_max_positions(*limits: Limit) -> Limit:
    """The element-wise minimum of ``limits`` (tokens); None means no limit.

    A limit is a number, a tuple of numbers (one per input) or a dict of them (one per dataset); a number meets every
    element of a tuple or dict.
    """
    return functools.reduce(_smaller, limits, None)


def _smaller(a: Limit, b: Limit) -> Limit:
    if a is None or b is None:
        return b if a is None else a
    for table, other in ((a, b), (b, a)):
        if isinstance(table, dict):
            others = other if isinstance(other, dict) else dict.fromkeys(table, other)
            return {key: _smaller(value, others.get(key)) for key, value in table.items()}
    if isinstance(a, Iterable) and isinstance(b, Iterable):
        return tuple(_smaller(x, y) for x, y in zip(a, b, strict=True))
    for elements, number in ((a, b), (b, a)):
        if isinstance(elements, Iterable):
            return tuple(_smaller(element, number) for element in elements)
    return min(a, b)  # type: ignore[type-var]
