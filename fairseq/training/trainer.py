"""The trainer owns model, optimizer, schedule and meters of a run, and does one update or one evaluation at a time.

One update: accumulate the gradient of several micro-batches, normalise, clip, step. The gradient of an update is the
sum of the losses' gradients over its micro-batches, divided by the sum of their sample sizes (masked tokens), so that
the split into micro-batches does not matter. When to validate, save and stop is in `fairseq.training.loop`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fairseq.checkpoint.reader import read
from fairseq.checkpoint.store import CheckpointStore
from fairseq.distributed import utils as distributed
from fairseq.errors import NonFiniteError, TrainingError
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.optim import precision
from fairseq.optim.ema import EMA
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.training import run_state
from fairseq.training.batches import batch_iterator, resolve_max_positions
from fairseq.training.nan_detector import NanDetector, first_bad_gradient, first_bad_parameter, keep_gradients
from fairseq.tree import map_tensors

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models.fairseq_model import BaseFairseqModel
    from fairseq.tasks.fairseq_task import FairseqTask

logger = logging.getLogger(TRAIN_LOGGER)


@dataclass
class Accumulated:
    """What the micro-batches of one update left behind."""

    loss: Tensor | float = 0.0
    """Sum of the losses (nats), detached."""
    sample_size: Tensor | float = 0.0
    """What the loss is divided by (masked tokens)."""
    logging_outputs: list[dict[str, Any]] = field(default_factory=list)


def accumulate(trainer: Trainer, samples: Iterable[dict[str, Any]]) -> Accumulated | None:
    """Forward and backward of every micro-batch; None when the device ran out of memory and the update is dropped."""
    total = Accumulated()
    for sample in samples:
        batch, is_dummy = trainer.prepare_sample(sample)
        try:
            loss, sample_size, logging_output = trainer.task.train_step(
                sample=batch,
                model=trainer.model,
                criterion=trainer.criterion,
                optimizer=trainer.optimizer,
                update_num=trainer.get_num_updates(),
                ignore_grad=is_dummy,
            )
        except torch.cuda.OutOfMemoryError as error:
            logger.warning("out of memory (%s); this update is skipped", error)
            trainer.optimizer.zero_grad()
            torch.cuda.empty_cache()
            return None
        if is_dummy:  # an empty shard takes part in the update with no weight
            continue
        total.loss = total.loss + loss.detach()
        total.sample_size = total.sample_size + sample_size
        total.logging_outputs.append(logging_output)
    return total


def apply_gradient(trainer: Trainer, total: Accumulated) -> Tensor:
    """Divide the gradient by the sample size, clip it, step the optimizer; returns the norm before clipping.

    Raises OverflowError when a scaled (fp16) gradient overflowed, NonFiniteError when loss or gradient are not finite.
    """
    trainer.optimizer.multiply_grads(1.0 / _divisor(total.sample_size))
    grad_norm = trainer.optimizer.clip_grad_norm(trainer.cfg.optimization.clip_norm)
    # The only number that every update waits for (a GPU's step is on its way by then): a bad update must not touch the
    # weights. One number for both: inf - inf and nan propagate through the sum.
    if not torch.isfinite(grad_norm + total.loss):
        raise NonFiniteError("the loss or the gradient is NaN or infinite")
    trainer.task.optimizer_step(trainer.optimizer, model=trainer.model, update_num=trainer.get_num_updates())
    return grad_norm


def _divisor(sample_size: Tensor | float) -> Tensor | float:
    """``sample_size``, but 1 for an update without targets, which has no loss and no gradient to divide."""
    if isinstance(sample_size, Tensor):
        return torch.where(sample_size == 0, 1, sample_size)
    return sample_size or 1.0


def explain_non_finite(trainer: Trainer, samples: Iterable[dict[str, Any]], total: Accumulated) -> NonFiniteError:
    """The error for a diverged update: repeats the forward pass and names the first tensor that is not finite."""
    where = first_bad_parameter(trainer.model)
    if where is None:
        where = _first_bad_output(trainer, samples) or first_bad_gradient(trainer.model)
    loss = float(total.loss) / max(float(total.sample_size), 1.0)
    return NonFiniteError(
        f"update {trainer.get_num_updates() + 1}: the loss ({loss:g} nats) or the gradient is NaN or infinite; first bad "
        f"tensor: {where or 'the gradient norm'}; the checkpoints in {trainer.cfg.checkpoint.save_dir} are as they were: "
        "lower the learning rate, set --clip-norm, or look at this batch"
    )


def _first_bad_output(trainer: Trainer, samples: Iterable[dict[str, Any]]) -> str | None:
    trainer.set_seed()  # the same dropout as in the update that failed
    for sample in samples:
        batch, _ = trainer.prepare_sample(sample)
        with keep_gradients(trainer.model), NanDetector(trainer.model, backward=False) as detector, torch.no_grad():
            trainer.criterion(trainer.model, batch)
        if detector.found is not None:
            return detector.found
    return None


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of ``model`` in place, or the whole of it where there is no list of layers.

    Layers have one code, so that the first one's compilation serves all; what differs from batch to batch (the number of
    masked tokens) stays outside. Names and classes of the modules stay as they are, and so do checkpoints.
    """
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    for part in layers or [model]:
        part.compile()


class Trainer:
    """Trains ``model`` with ``criterion`` on the data of ``task``, as ``cfg`` says."""

    def __init__(self, cfg: FairseqConfig, task: FairseqTask, model: BaseFairseqModel, criterion: nn.Module) -> None:
        self.cfg = cfg
        self.task = task
        self.cuda = torch.cuda.is_available() and not cfg.common.cpu
        self.device = torch.device("cuda", cfg.distributed_training.device_id) if self.cuda else torch.device("cpu")
        self.precision = precision.resolve(cfg.common, self.device)
        self.model = precision.cast_model(model.to(self.device), self.precision)
        if cfg.common.compile:
            compile_layers(self.model)
        self.criterion = precision.cast_model(criterion.to(self.device), self.precision)
        self.optimizer = precision.build(self.precision, cfg, self._trainable_parameters())
        self.lr_scheduler = build_lr_scheduler(
            cfg.lr_scheduler, getattr(self.optimizer, "fp32_optimizer", self.optimizer)
        )
        self.store = CheckpointStore(cfg.checkpoint)
        self.optimizer_history: list[dict[str, Any]] = []
        self.early_stop = run_state.EarlyStop()
        self._num_updates = 0
        self._dummy_source: EpochBatchIterator | None = None
        self._start_time = time.time()
        self._previous_training_time = 0.0
        self.lr_scheduler.step_update(0)
        self.ema = self._moving_average() if cfg.ema.store_ema else None
        metrics.log_start_time("wall", priority=790, round=0)

    def _trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        owners = (*self.model.named_parameters(), *self.criterion.named_parameters())
        named = [(name, parameter) for name, parameter in owners if parameter.requires_grad]
        if not named:
            raise TrainingError("the model has no trainable parameter; check what it freezes")
        return named

    def _moving_average(self) -> EMA:
        seed = self.cfg.ema.ema_seed_model
        return EMA(self.model, self.cfg.ema, seed_state=read(seed, with_config=False)["model"] if seed else None)

    # ---- where we are -------------------------------------------------------------------------------------------

    @property
    def data_parallel_world_size(self) -> int:
        return distributed.get_data_parallel_world_size()

    @property
    def data_parallel_rank(self) -> int:
        return distributed.get_data_parallel_rank()

    @property
    def is_data_parallel_master(self) -> bool:
        return self.data_parallel_rank == 0

    @property
    def checkpoint_suffix(self) -> str:
        """What the names of this process's checkpoint files carry before ``.pt``."""
        return self.cfg.checkpoint.checkpoint_suffix or ""

    @property
    def run_name(self) -> str:
        """How the run is called by experiment trackers."""
        return os.environ.get("WANDB_NAME") or Path(self.cfg.checkpoint.save_dir).resolve().name

    def get_model(self) -> BaseFairseqModel:
        return self.model

    def get_criterion(self) -> nn.Module:
        return self.criterion

    def get_lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.get_lr()

    def get_num_updates(self) -> int:
        """The number of completed updates."""
        return self._num_updates

    def set_num_updates(self, num_updates: int) -> None:
        """Move to ``num_updates`` completed updates: the learning rate and the logged count follow."""
        self._num_updates = num_updates
        self.lr_step_update()
        metrics.log_scalar("num_updates", num_updates, weight=0, priority=200)

    def cumulative_training_time(self) -> float:
        """Seconds of training, those of the runs that this one resumed included."""
        return time.time() - self._start_time + self._previous_training_time

    def restore_training_time(self, seconds: float) -> None:
        """Count ``seconds`` of earlier runs into ``cumulative_training_time``."""
        self._previous_training_time = float(seconds)

    # ---- data ---------------------------------------------------------------------------------------------------

    def get_train_iterator(
        self,
        epoch: int,
        combine: bool = True,
        load_dataset: bool = True,
        disable_iterator_cache: bool = False,
        **unused: Any,
    ) -> EpochBatchIterator:
        """The batches of ``epoch`` (1-based); ``train, train1, ...`` are combined. Too long samples are skipped."""
        data = self.cfg.dataset
        if load_dataset:
            logger.info("loading train data for epoch %d", epoch)
            self.task.load_dataset(data.train_subset, epoch=epoch, combine=combine)
        self._dummy_source = batch_iterator(
            self.cfg,
            self.task,
            data.train_subset,
            max_tokens=data.max_tokens,
            max_sentences=data.batch_size,
            max_positions=resolve_max_positions(self.task.max_positions(), self.model.max_positions(), data.max_tokens),
            ignore_invalid_inputs=True,
            epoch=epoch,
            disable_iterator_cache=disable_iterator_cache,
            skip_remainder_batch=self.cfg.optimization.skip_remainder_batch,
            grouped_shuffling=data.grouped_shuffling,
            update_epoch_batch_itr=data.update_epoch_batch_itr,
        )
        return self._dummy_source

    def get_valid_iterator(self, subset: str) -> EpochBatchIterator:
        """The batches of the validation ``subset``, always as in epoch 1."""
        data = self.cfg.dataset
        return batch_iterator(
            self.cfg,
            self.task,
            subset,
            max_tokens=data.max_tokens_valid,
            max_sentences=data.batch_size_valid,
            max_positions=resolve_max_positions(self.task.max_positions(), self.model.max_positions()),
            ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
        )

    def check_sizes(self, subset: str) -> None:
        """Raise DataError if the first validation on ``subset`` would stop at a sample that is too long."""
        if not self.cfg.dataset.skip_invalid_size_inputs_valid_test:
            dataset = self.task.dataset(subset)
            limit = resolve_max_positions(self.task.max_positions(), self.model.max_positions())
            self.task.filter_indices_by_size(np.arange(len(dataset)), dataset, limit)

    def prepare_sample(self, sample: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        """``sample`` on the device in the run's precision; an empty one becomes a dummy batch (second value True)."""
        is_dummy = not sample
        if is_dummy:
            if self._dummy_source is None:
                raise TrainingError("an empty batch came before the training data was loaded")
            sample = self._dummy_source.first_batch
        sample = map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), sample)
        return precision.cast_sample(sample, self.precision), is_dummy

    # ---- one step -----------------------------------------------------------------------------------------------

    def set_seed(self) -> None:
        """Seed torch from the run's seed and the update, so that a resumed run repeats dropout exactly."""
        torch.manual_seed(self.cfg.common.seed + self._num_updates)

    @metrics.aggregate("train")
    def train_step(self, samples: list[dict[str, Any]]) -> dict[str, Any] | None:
        """One update from the micro-batches ``samples``; returns its statistics, or None when it was skipped."""
        for _ in range(self.cfg.common.amp_batch_retries + 1 if self.precision == "amp" else 1):
            self.set_seed()
            self.model.train()
            self.criterion.train()
            self.optimizer.zero_grad()
            metrics.log_start_time("train_wall", priority=800, round=0)
            total = accumulate(self, samples)
            if total is None:
                return None
            try:
                grad_norm = apply_gradient(self, total)
            except OverflowError as overflow:
                logger.info("NOTE: gradient overflow detected, ignoring gradient, %s", overflow)
                self.optimizer.zero_grad()
                self._log_loss_scale()
                continue
            except FloatingPointError as failure:
                diverged = isinstance(failure, NonFiniteError)  # else the loss scale has reached its minimum
                update = f"update {self._num_updates + 1}"
                error = explain_non_finite(self, samples, total) if diverged else NonFiniteError(f"{update}: {failure}")
                run_state.save_crash(self)
                raise error from None
            return self._finish_step(total, grad_norm)
        return None

    def _finish_step(self, total: Accumulated, grad_norm: Tensor) -> dict[str, Any]:
        self.set_num_updates(self._num_updates + 1)
        if self.ema is not None:
            self.ema.step(self.model, self._num_updates)
            metrics.log_scalar("ema_decay", self.ema.get_decay(), priority=10000, round=5, weight=0)
        if self.cuda:
            peak = torch.cuda.max_memory_allocated() / 1024**3
            torch.cuda.reset_peak_memory_stats()
            free = torch.cuda.get_device_properties(self.device).total_memory / 1024**3 - peak
            metrics.log_scalar("gb_free", free, priority=1500, round=1, weight=0)
            every = self.cfg.common.empty_cache_freq
            if every > 0 and self._num_updates % every == 0:
                torch.cuda.empty_cache()
        stats = self._log_stats(total, grad_norm)
        self._log_loss_scale()
        metrics.log_stop_time("train_wall")
        return stats

    @metrics.aggregate("valid")
    def valid_step(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Evaluate one batch and log its statistics."""
        self.model.eval()
        self.criterion.eval()
        batch, is_dummy = self.prepare_sample(sample)
        with torch.no_grad():
            _, sample_size, logging_output = self.task.valid_step(batch, self.model, self.criterion)
        total = Accumulated(0.0, 0.0 if is_dummy else sample_size, [] if is_dummy else [logging_output])
        return self._log_stats(total, None)

    def _log_stats(self, total: Accumulated, grad_norm: Tensor | None) -> dict[str, Any]:
        if grad_norm is not None:
            metrics.log_speed("ups", 1.0, priority=100, round=2)
            metrics.log_scalar("gnorm", grad_norm, priority=400, round=3)
            if self.cfg.optimization.clip_norm > 0:
                clipped = torch.where(grad_norm > self.cfg.optimization.clip_norm, 100.0, 0.0)
                metrics.log_scalar("clip", clipped, priority=500, round=1)
        with metrics.aggregate() as meters:
            if total.logging_outputs:
                self.task.reduce_metrics(total.logging_outputs, self.criterion)
            return {**meters.get_smoothed_values(), "sample_size": total.sample_size}

    def _log_loss_scale(self) -> None:
        scaler = getattr(self.optimizer, "scaler", None)
        if scaler is not None:
            metrics.log_scalar("loss_scale", scaler.loss_scale, priority=700, round=4, weight=0)

    # ---- epochs and schedule ------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch of training."""
        logger.info("begin training epoch %d", epoch)
        self.lr_scheduler.step_begin_epoch(epoch)
        self.lr_step_update()
        self.task.begin_epoch(epoch, self.model)

    def begin_valid_epoch(self, epoch: int) -> None:
        """Called at the start of every validation."""
        self.task.begin_valid_epoch(epoch, self.model)

    def lr_step(self, epoch: int, val_loss: float | None = None) -> float:
        """Adjust the learning rate at the end of ``epoch``."""
        self.lr_scheduler.step(epoch, val_loss)
        return self.lr_step_update()

    def lr_step_update(self) -> float:
        """Adjust the learning rate after an update and log it (the printed rate is that of the next update)."""
        lr = self.lr_scheduler.step_update(self._num_updates)
        metrics.log_scalar("lr", lr, weight=0, priority=300)
        return lr

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def ema_state(self) -> dict[str, Any]:
        """What a checkpoint stores of the moving average; empty without one."""
        return {} if self.ema is None else self.ema.extra_state()

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: dict[str, Any] | None = None,
        reset_meters: bool = False,
    ) -> dict[str, Any] | None:
        """Load ``filename`` into model, optimizer, schedule and meters; returns its ``extra_state`` (None: no file)."""
        return run_state.restore(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)

    def save_checkpoint(self, epoch_itr: EpochBatchIterator, val_loss: float | None) -> Path | None:
        """Write the files that are due now (``store`` decides which); returns the first one written."""
        return run_state.save(self, epoch_itr, val_loss)
