"""`FairseqTask`, base of all tasks (dictionaries, datasets, batches, one step), and the registry of tasks."""

from __future__ import annotations

import argparse
import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fairseq import criterions, models
from fairseq.data import encoders
from fairseq.data.batching import filter_by_size
from fairseq.data.datasets import FairseqDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.iterators import EpochBatchIterator
from fairseq.data.text import tokenize_line
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.errors import ConfigError, DataError, OutOfScopeError
from fairseq.file_io import split_paths
from fairseq.layout import LayoutCollater
from fairseq.logging import metrics
from fairseq.overrides import inherited, overridden, supports
from fairseq.registry import TASKS, RegistryView
from fairseq.rng import numpy_seed

logger = logging.getLogger(__name__)

_STEPS = ("train_step", "valid_step")


class NotLoadedError(DataError, KeyError):
    """A dataset that `FairseqTask.load_dataset` was not asked for (a KeyError, as callers of the original expect)."""


class StatefulContainer:
    """State of a task that checkpoints keep: values by name, made by their factory when first asked for."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._factories: dict[str, Callable[[], Any]] = {}

    def add_factory(self, name: str, factory: Callable[[], Any]) -> None:
        self._factories[name] = factory

    def merge_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state.update(state_dict)

    @property
    def state_dict(self) -> dict[str, Any]:
        return self._state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._state and name in self._factories:
            self._state[name] = self._factories[name]()
        if name in self._state:
            return self._state[name]
        raise AttributeError(f"the task state has no {name!r}")


class _Args:
    """``task.args``, the task section of the configuration under its old name; a plugin may set its own."""

    def __get__(self, task: Any, owner: type) -> Any:
        return self if task is None else task.cfg


class FairseqTask:
    """What is learned from which data. ``cfg`` is the task section of the configuration.

    A subclass implements ``setup_task`` (load dictionaries, return the task) and ``load_dataset`` (fill
    ``self.datasets[split]``); the rest has defaults.
    """

    takes_layouts = True
    """Its steps hand samples to the criterion as they are: those may tell what is in them (`fairseq.layout`)."""
    predicts_tokens = False
    """The model predicts those tokens of a sample whose ``target`` (B, T) is not padding."""
    uses_ema = False
    """Its steps take ``ema_model``, the averaged model, where a run keeps one (``--store-ema``)."""
    cfg: Any = None
    state: StatefulContainer | None = None
    args: Any = _Args()

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the task's flags to ``parser``; by default those of its dataclass."""
        dataclass = inherited(cls, "__dataclass")  # registered again without one, a subclass has those of its parent
        if dataclass is not None:
            gen_parser_from_dataclass(parser, dataclass())

    @staticmethod
    def logging_outputs_can_be_summed(criterion: Any) -> bool:
        """Whether logging outputs of several micro-batches and workers may be added up before they are reduced."""
        return criterion.logging_outputs_can_be_summed()

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        self.cfg = cfg
        self.datasets: dict[str, Any] = {}
        self.dataset_to_epoch_iter: dict[Any, EpochBatchIterator] = {}
        self.state = StatefulContainer()
        self.bpe_config: Any = None
        """The run's encoder section (or None), set by `fairseq.tasks.setup_task`."""

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> FairseqTask:
        """Make the task, loading what it needs (dictionaries)."""
        return cls(cfg, **kwargs)

    @classmethod
    def load_dictionary(cls, filename: str) -> Dictionary:
        return Dictionary.load(filename)

    @classmethod
    def build_dictionary(
        cls, filenames: list[str], workers: int = 1, threshold: int = -1, nwords: int = -1, padding_factor: int = 8
    ) -> Dictionary:
        """Count the words of text files; see `Dictionary.finalize` for threshold, nwords and padding."""
        dictionary = Dictionary()
        for filename in filenames:
            Dictionary.add_file_to_dictionary(filename, dictionary, tokenize_line, workers)
        dictionary.finalize(threshold=threshold, nwords=nwords, padding_factor=padding_factor)
        return dictionary

    # ---- data ---------------------------------------------------------------------------------------------------

    def has_sharded_data(self, split: str) -> bool:
        """Whether the data has several directories, so that every epoch loads another one."""
        return len(split_paths(getattr(self.args, "data", "") or "")) > 1

    def validation_subsets(self, names: list[str]) -> list[str]:
        """The subsets that are validated where ``names`` are asked for, which have been loaded; the first one counts."""
        return names

    def check_shards(self, split: str) -> None:
        """Look at ``split`` in the data directories of all epochs, before the first; by default at nothing."""

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Load ``split`` for ``epoch`` (from 1) into ``self.datasets``; ``combine`` joins split, split1, split2, ..."""
        raise NotImplementedError

    def dataset(self, split: str) -> FairseqDataset:
        """The loaded dataset of ``split``. Raises NotLoadedError (a KeyError) when there is none."""
        if split not in self.datasets:
            raise NotLoadedError(f"Dataset not loaded: {split}; loaded are: {', '.join(self.datasets) or 'none'}")
        if not isinstance(self.datasets[split], FairseqDataset):
            raise TypeError(
                f"the dataset of {split!r} must be a FairseqDataset, but is {self.datasets[split]!r} instead"
            )
        return self.datasets[split]

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        """``indices`` without those of items longer than ``max_positions``.

        With ``ignore_invalid_inputs`` they are left out with one warning, otherwise the first is a DataError.
        """
        indices, ignored = filter_by_size(indices, dataset, max_positions, raise_exception=not ignore_invalid_inputs)
        if len(ignored):
            logger.warning(
                "%s samples have invalid sizes and will be skipped, max_positions=%s, first few sample ids=%s",
                f"{len(ignored):,}",
                max_positions,
                [int(i) for i in ignored[:10]],
            )
        return indices

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """Whether batches made for one epoch serve all."""
        return getattr(dataset, "can_reuse_epoch_itr_across_epochs", False)

    def get_batch_iterator(
        self,
        dataset: Any,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        disable_iterator_cache: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        update_epoch_batch_itr: bool = False,
    ) -> EpochBatchIterator:
        """Batches of ``dataset`` for epoch after epoch; the same object again when it may serve all epochs.

        Args:
            max_tokens, max_sentences, required_batch_size_multiple: see `fairseq.ops.batching.batch_by_size`.
            max_positions: longest item (tokens) that the model takes; see `filter_indices_by_size`.
            seed: of the order.
            num_shards, shard_id, num_workers, skip_remainder_batch, grouped_shuffling: see `EpochBatchIterator`.
            epoch: the first epoch.
            data_buffer_size: batches made ahead by a thread.
            disable_iterator_cache, update_epoch_batch_itr: make a new object in any case.
        """
        reusable = not disable_iterator_cache and not update_epoch_batch_itr and self.can_reuse_epoch_itr(dataset)
        if reusable and dataset in self.dataset_to_epoch_iter:
            return self.dataset_to_epoch_iter[dataset]
        dataset.set_epoch(epoch)
        with numpy_seed(seed):
            indices = dataset.ordered_indices()
        if max_positions is not None:
            indices = self.filter_indices_by_size(indices, dataset, max_positions, ignore_invalid_inputs)
        batches = dataset.batch_by_size(
            indices,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            required_batch_size_multiple=required_batch_size_multiple,
        )
        iterator = EpochBatchIterator(
            dataset=dataset,
            collate_fn=self._collater(dataset),
            batch_sampler=batches,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
            grouped_shuffling=grouped_shuffling,
            reuse_dataloader=getattr(self.cfg, "reuse_dataloader", True),
            persistent_workers=getattr(self.cfg, "persistent_workers", False),
        )
        if reusable:
            self.dataset_to_epoch_iter[dataset] = iterator
        return iterator

    def _collater(self, dataset: Any) -> Callable[[list[Any]], Any]:
        """``dataset.collater``, for a device with layouts. A plugin's own steps may change samples: then without."""
        dictionary = self.source_dictionary
        if not torch.cuda.is_available() or dictionary is None or not supports(self, "takes_layouts", *_STEPS):
            return dataset.collater
        return LayoutCollater(dataset.collater, dictionary.pad(), self.predicts_tokens)

    # ---- model and steps ----------------------------------------------------------------------------------------

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """The model that the ``model`` section describes."""
        return models.build_model(cfg, self, from_checkpoint)

    def build_criterion(self, cfg: Any) -> Any:
        """The criterion that the ``criterion`` section describes."""
        return criterions.build_criterion(cfg, self)

    def build_tokenizer(self, args: Any) -> Any:
        return encoders.build_tokenizer(args)

    def build_bpe(self, args: Any) -> Any:
        return encoders.build_bpe(args)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Forward and backward of one micro-batch: (loss, sample size, logging output).

        ``ignore_grad`` gives it no weight (the dummy batch of a short shard).
        """
        model.train()
        model.set_num_updates(update_num)
        autocast = optimizer.autocast() if hasattr(optimizer, "autocast") else contextlib.nullcontext()
        with torch.autograd.profiler.record_function("forward"), autocast:
            loss, sample_size, logging_output = criterion(model, sample)
        if ignore_grad:
            loss = loss * 0
        with torch.autograd.profiler.record_function("backward"):
            optimizer.backward(loss)
        return loss, sample_size, logging_output

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Evaluation of one batch: (loss, sample size, logging output)."""
        model.eval()
        with torch.no_grad():
            return criterion(model, sample)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """The update itself, from gradients that are normalized and clipped."""
        optimizer.step()

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Called before the first update of an epoch."""

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Called before each validation."""

    def aggregate_logging_outputs(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> dict[str, Any]:
        """Old interface, replaced by ``reduce_metrics``: what the outputs amount to, by name."""
        with metrics.aggregate() as meters:
            self.reduce_metrics(logging_outputs, criterion)
        return meters.get_smoothed_values()

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log words and sentences per batch and the speed, then what the criterion logs."""
        if overridden(self, FairseqTask, "aggregate_logging_outputs"):
            for name, value in self.aggregate_logging_outputs(logging_outputs, criterion).items():
                if name not in ("nsentences", "ntokens", "sample_size"):
                    metrics.log_scalar(name, value)
            return
        if any("ntokens" in output for output in logging_outputs):
            ntokens = sum(output.get("ntokens", 0) for output in logging_outputs)
            metrics.log_scalar("wpb", ntokens, priority=180, round=1)
            metrics.log_speed("wps", ntokens, priority=90, round=1)
        else:
            warnings.warn("ntokens not found in Criterion logging outputs, cannot log wpb or wps")
        if any("nsentences" in output for output in logging_outputs):
            nsentences = sum(output.get("nsentences", 0) for output in logging_outputs)
            metrics.log_scalar("bsz", nsentences, priority=190, round=1)
        else:
            warnings.warn("nsentences not found in Criterion logging outputs, cannot log bsz")
        criterion.__class__.reduce_metrics(logging_outputs)

    # ---- inference and state ------------------------------------------------------------------------------------

    def build_dataset_for_inference(self, src_tokens: Any, src_lengths: Any, **kwargs: Any) -> Any:
        """A dataset of the given sentences."""
        raise NotImplementedError

    def build_generator(self, *args: Any, **kwargs: Any) -> Any:
        raise OutOfScopeError("text generation is out of scope; masked language models answer with fill_mask")

    def inference_step(self, *args: Any, **kwargs: Any) -> Any:
        raise OutOfScopeError("text generation is out of scope; masked language models answer with fill_mask")

    def state_dict(self) -> dict[str, Any]:
        return {} if self.state is None else dict(self.state.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.state is not None:
            self.state.merge_state_dict(state_dict)

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """More of the task's state for ``extra_state`` of checkpoints: ``{name of its class: state}``, or nothing."""
        return {}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Take back what `get_checkpoint_dict` stored under the name of the class, when the data is where it was."""

    def max_positions(self) -> Any:
        """Longest item of the task (tokens); None: the model alone limits it."""
        return None

    @property
    def source_dictionary(self) -> Dictionary | None:
        return None

    @property
    def target_dictionary(self) -> Dictionary | None:
        return None


class LegacyFairseqTask(FairseqTask):
    """Base of old plugin tasks, configured by an ``argparse.Namespace`` called ``args``."""

    def __init__(self, args: Any) -> None:
        super().__init__(None)
        self.args = args

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> FairseqTask:  # type: ignore[override]
        return cls(args, **kwargs)


C = TypeVar("C")

TASK_REGISTRY = RegistryView(TASKS)
TASK_DATACLASS_REGISTRY = RegistryView(TASKS, TASKS.config_class)


def register_task(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: the task becomes available as ``--task name``, with ``dataclass`` for its settings."""
    return TASKS.register(name, dataclass=dataclass, base=FairseqTask)


def get_task(name: str) -> type[FairseqTask]:
    """The task class called ``name``."""
    return TASKS.get(name)


def setup_task(cfg: Any, bpe: Any = None, **kwargs: Any) -> FairseqTask:
    """The task that ``cfg`` describes: a configuration node, a dataclass instance or a (flat) argparse.Namespace.

    ``bpe`` is the run's encoder section (whole-word masking needs it); further arguments go to the task's own
    ``setup_task``. Raises ConfigError for an unknown task and OutOfScopeError for one that this project leaves out.
    """
    if TASKS.chosen(cfg, "task") is None:
        raise ConfigError(f"the task section names no task; known: {', '.join(TASKS.names())}")
    cls, cfg = TASKS.resolve(cfg, "task")
    task = cls.setup_task(cfg, **kwargs)
    # Set afterwards, because a plugin's setup_task may hand its arguments on to a constructor that does not know it.
    task.bpe_config = bpe
    return task
