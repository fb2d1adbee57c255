"""The trainer: owns model, optimizer, schedule and meters of a run, and does one update or one evaluation at a time.

The gradient of an update is the sum of the losses' gradients over its micro-batches, divided by the sum of their sample
sizes (masked tokens), so that the split into micro-batches does not matter. When to validate, save and stop is in
``loop.py``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairseq.checkpoint.reader import read
from fairseq.checkpoint.schema import build_state
from fairseq.checkpoint.store import CheckpointStore, Save
from fairseq.checkpoint.stored_paths import make_absolute
from fairseq.dataclass.slots import other_variants
from fairseq.dataclass.state import config_to_state
from fairseq.distributed import group as distributed
from fairseq.errors import CheckpointError, FairseqError, NonFiniteError, TrainingError
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.logging.meters import Statistics
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.models.loading import MisfitError, load_weights
from fairseq.optim import precision
from fairseq.optim.lr_scheduler import build_lr_scheduler
from fairseq.training import signals
from fairseq.training.batches import train_batches, valid_batches
from fairseq.training.compilation import compile_layers
from fairseq.training.inherited import keep_bpe, misfit
from fairseq.training.memory import log_free, shortage
from fairseq.training.nan_detector import BadUpdates, first_bad_tensor, with_finite_weights
from fairseq.training.old_names import OldTrainerNames
from fairseq.training.parameters import averaged_model, prepare, trainable
from fairseq.training.peers import Accumulated, OutOfMemoryError
from fairseq.training.run_state import (
    EarlyStop,
    Resets,
    StatefulPart,
    check_class_names,
    class_names,
    count_batches,
    from_checkpoint,
)
from fairseq.training.sharding import meet, planned
from fairseq.tree import map_tensors

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models.fairseq_model import BaseFairseqModel
    from fairseq.optim.ema import EMA
    from fairseq.tasks.fairseq_task import FairseqTask

logger = logging.getLogger(TRAIN_LOGGER)


class Trainer(OldTrainerNames):
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
        self._start_time = time.time()
        self._previous_training_time = 0.0
        prepare(self.model, self.criterion, cfg.optimization)
        sharding = planned(cfg, self.precision)
        self.ema = averaged_model(self.model, cfg.ema, None if sharding is None else sharding.apply)
        self.peers = meet(cfg, task, self.model, self.criterion, sharding, self._wishes)
        parameters = self.peers.rows(trainable(self.model, self.criterion))
        self.optimizer = precision.build(self.precision, cfg, parameters, sharded=sharding is not None)
        self.lr_scheduler = build_lr_scheduler(
            cfg.lr_scheduler, getattr(self.optimizer, "fp32_optimizer", self.optimizer)
        )
        self.store = CheckpointStore(cfg.checkpoint, self.peers.writers)
        self.optimizer_history: list[dict[str, Any]] = []
        self.early_stop = EarlyStop()
        self._num_updates = 0
        self.bad_updates = BadUpdates(cfg.optimization.skip_bad_updates, cfg.checkpoint.save_dir)
        self._dummy_source: EpochBatchIterator | None = None
        self.own_updates = 0  # those that this process made
        self.predicted: Tensor | float = 0.0  # the sum of their sample sizes, left where it is
        self.lr_scheduler.step_update(0)
        metrics.log_start_time("wall", priority=790, round=0)

    def _ema_argument(self) -> dict[str, nn.Module]:
        """The averaged model, for the steps of a task that wants it."""
        ema = self.ema if getattr(self.task, "uses_ema", False) else None
        return {} if ema is None else {"ema_model": ema.get_model()}

    def _wishes(self) -> dict[str, bool]:
        """What this process would do now; all processes do it when one wishes it."""
        hours = self.cfg.optimization.stop_time_hours
        time_up = 0 < hours < self.cumulative_training_time() / 3600
        return {"time_up": time_up, "interrupted": signals.received() is not None}

    # ---- where we are -------------------------------------------------------------------------------------------

    @property
    def is_data_parallel_master(self) -> bool:
        return distributed.get_data_parallel_rank() == 0

    @property
    def run_name(self) -> str:
        """How the run is called by experiment trackers."""
        return os.environ.get("WANDB_NAME") or Path(self.cfg.checkpoint.save_dir).resolve().name

    def get_model(self) -> BaseFairseqModel:
        return self.model

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
        if load_dataset:
            logger.info("loading train data for epoch %d", epoch)
            self.task.load_dataset(self.cfg.dataset.train_subset, epoch=epoch, combine=combine)
        self._dummy_source = train_batches(self.cfg, self.task, self.model, epoch, disable_iterator_cache)
        return self._dummy_source

    def get_valid_iterator(self, subset: str) -> EpochBatchIterator:
        """The batches of the validation ``subset``, always as in epoch 1."""
        data = self.cfg.dataset
        return valid_batches(self.cfg, self.task, self.model, subset, data.max_tokens_valid, data.batch_size_valid)

    def prepare_sample(self, sample: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
        """``sample`` on the device in the run's precision; an empty one becomes a dummy batch (second value True)."""
        is_dummy = not sample
        if is_dummy:
            if self._dummy_source is None:
                raise TrainingError("an empty batch came before the training data was loaded")
            sample = self._dummy_source.first_batch
        sample = map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True), sample)
        return precision.cast_sample(sample, self.precision), is_dummy

    # ---- one update ---------------------------------------------------------------------------------------------

    @metrics.aggregate("train")
    def train_step(self, samples: list[dict[str, Any]]) -> Mapping[str, Any] | None:
        """One update from the micro-batches ``samples``; returns its statistics, or None when it was skipped."""
        for _ in range(self.cfg.common.amp_batch_retries + 1 if self.precision == "amp" else 1):
            self._begin_update()
            total = self._accumulate(samples)
            if total is None:
                return None
            total = self.peers.add_up(total)
            try:
                grad_norm = self._apply_gradient(total)
            except OutOfMemoryError:
                self.optimizer.zero_grad()
                return None
            except OverflowError as overflow:
                logger.info("NOTE: gradient overflow detected, ignoring gradient, %s", overflow)
                self.optimizer.zero_grad()
                self._log_loss_scale()
                continue
            except FloatingPointError as failure:
                if self.bad_updates.skips(failure, self._num_updates + 1):
                    self.optimizer.zero_grad()
                    return None
                error = self._explain(failure, samples, total)
                self._save_crash()
                raise error from None
            return self._finish_update(total, grad_norm)
        return None

    def set_seed(self) -> None:
        """Seed torch from the run's seed and the update, so that a resumed run repeats dropout exactly.

        Deviation from the original: processes draw other dropout masks than the first one, not the same again.
        """
        torch.manual_seed(self.cfg.common.seed + self._num_updates + (distributed.get_data_parallel_rank() << 40))

    def _begin_update(self) -> None:
        self.set_seed()
        self.model.train()
        self.criterion.train()
        self.optimizer.zero_grad()
        self.peers.forget_gradients()
        metrics.log_start_time("train_wall", priority=800, round=0)

    def _accumulate(self, samples: Iterable[dict[str, Any]]) -> Accumulated | None:
        """Forward and backward of every micro-batch; None when the device ran out of memory: the update is dropped."""
        total = Accumulated()
        for sample in self.peers.each(samples, self._num_updates + 1):
            batch, is_dummy = self.prepare_sample(sample)
            try:
                loss, sample_size, logging_output = self.task.train_step(
                    sample=batch,
                    model=self.model,
                    criterion=self.criterion,
                    optimizer=self.optimizer,
                    update_num=self._num_updates,
                    ignore_grad=is_dummy,
                    **self._ema_argument(),
                )
            except torch.cuda.OutOfMemoryError as error:
                self.optimizer.zero_grad()
                if not self.peers.goes_on_without(shortage(error, batch)):
                    return None
                total.out_of_memory = True
                break
            if is_dummy:  # an empty shard takes part in the update with no weight
                total.dummy = logging_output
                continue
            total.loss = total.loss + loss.detach()
            total.sample_size = total.sample_size + sample_size
            total.logging_outputs.append(logging_output)
        return total

    def _apply_gradient(self, total: Accumulated) -> Tensor:
        """Divide the gradient by the sample size, clip it, step the optimizer; returns the norm before clipping.

        Raises OverflowError when a scaled (fp16) gradient overflowed, NonFiniteError when loss or gradient are not
        finite, FloatingPointError when the loss scale has reached its minimum.
        """
        self.optimizer.multiply_grads(self.peers.averaged / total.divisor())
        grad_norm = self.optimizer.clip_unread(self.cfg.optimization.clip_norm)
        # The only number that every update waits for (a GPU's step is on its way by then): a bad update must not touch
        # the weights. One number for both: inf - inf and nan propagate through the sum.
        if not torch.isfinite(self.peers.read(grad_norm + total.loss, total)):
            self.optimizer.check_norm(grad_norm)
            raise NonFiniteError("the loss or the gradient is NaN or infinite")
        self.task.optimizer_step(self.optimizer, model=self.model, update_num=self._num_updates)
        return grad_norm

    def _explain(
        self, failure: FloatingPointError, samples: Iterable[dict[str, Any]], total: Accumulated
    ) -> NonFiniteError:
        """The error for a diverged update: repeats the forward pass and names the first tensor that is not finite."""
        self.set_seed()  # the same dropout as in the update that failed
        batches = (self.prepare_sample(sample)[0] for sample in self.peers.each(samples, self._num_updates + 1))
        loss = float(total.loss) / max(float(total.sample_size), 1.0)
        where = partial(first_bad_tensor, self.model, self.criterion, batches, self.peers.first_found)
        return self.bad_updates.error(failure, self._num_updates + 1, loss, where)

    def _finish_update(self, total: Accumulated, grad_norm: Tensor) -> Mapping[str, Any]:
        self.bad_updates.in_a_row = 0
        self.set_num_updates(self._num_updates + 1)
        self.own_updates += 1
        self.predicted = self.predicted + total.sample_size
        if self.ema is not None:
            self.ema.step(self.model, self._num_updates)
            metrics.log_scalar("ema_decay", self.ema.get_decay(), priority=10000, round=5, weight=0)
        if self.cuda:
            log_free(self.device)
            every = self.cfg.common.empty_cache_freq
            if every > 0 and self._num_updates % every == 0:
                torch.cuda.empty_cache()
        stats = self._log_stats(total, grad_norm)
        self._log_loss_scale()
        metrics.log_stop_time("train_wall")
        return stats

    @metrics.aggregate("valid")
    def valid_step(self, sample: dict[str, Any] | None) -> Mapping[str, Any]:
        """Evaluate one batch and log its statistics."""
        self.model.eval()
        self.criterion.eval()
        total = Accumulated()
        if sample or self.peers.shares_passes:  # another process may have one more
            batch, is_dummy = self.prepare_sample(sample)
            with torch.no_grad():
                _, sample_size, logging_output = self.task.valid_step(
                    batch, self.model, self.criterion, **self._ema_argument()
                )
            if not is_dummy:
                total = Accumulated(0.0, sample_size, [logging_output])
        return self._log_stats(self.peers.collect(total), None)

    def _log_stats(self, total: Accumulated, grad_norm: Tensor | None) -> Mapping[str, Any]:
        if grad_norm is not None:
            metrics.log_speed("ups", 1.0, priority=100, round=2)
            metrics.log_scalar("gnorm", grad_norm, priority=400, round=3)
            if self.cfg.optimization.clip_norm > 0:
                clipped = torch.where(grad_norm > self.cfg.optimization.clip_norm, 100.0, 0.0)
                metrics.log_scalar("clip", clipped, priority=500, round=1)
        with metrics.aggregate() as meters:
            if total.logging_outputs:
                self.task.reduce_metrics(total.logging_outputs, self.criterion)
        return Statistics(meters, {"sample_size": total.sample_size})

    def _log_loss_scale(self) -> None:
        scaler = getattr(self.optimizer, "scaler", None)
        if scaler is not None:
            scale = scaler.unread() if hasattr(scaler, "unread") else scaler.loss_scale
            metrics.log_scalar("loss_scale", scale, priority=700, round=4, weight=0)

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
        """Adjust the learning rate after an update and log it (what is printed is that of the next update)."""
        lr = self.lr_scheduler.step_update(self._num_updates)
        metrics.log_scalar("lr", lr, weight=0, priority=300)
        return lr

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def parts(self, source: str = "", optimizer_overrides: Mapping[str, Any] | None = None) -> list[StatefulPart]:
        """The state of the run, in the order in which it is restored (from the file ``source``)."""
        options, criterion, optimizer, ema = self.cfg.checkpoint, self.criterion, self.optimizer, self.ema
        parts = [
            StatefulPart(
                "model",
                lambda: precision.full_precision_state(self.model, optimizer),
                lambda weights: self._load_weights(weights, source),
            ),
            StatefulPart(
                "optimizer_history", lambda: self.optimizer_history, partial(setattr, self, "optimizer_history")
            ),
            StatefulPart(
                "classes",
                partial(class_names, criterion, optimizer),
                partial(check_class_names, criterion, optimizer, source),
            ),
            StatefulPart("lr_scheduler_state", self.lr_scheduler.state_dict, self.lr_scheduler.load_state_dict),
            StatefulPart(
                "optimizer",
                lambda: None if options.no_save_optimizer_state else optimizer.state_dict(),
                lambda state: optimizer.load_state_dict(state, optimizer_overrides),
            ),
            StatefulPart("num_updates", self.get_num_updates, self.set_num_updates),
            StatefulPart("task", self.task.state_dict, self.task.load_state_dict),
            StatefulPart("task_extra", self.task.get_checkpoint_dict, self.task.set_checkpoint_dict),
            StatefulPart("training_time", self.cumulative_training_time, self.restore_training_time),
            StatefulPart(
                "early_stop",
                lambda: self.early_stop.state_dict() if options.patience > 0 else None,
                self.early_stop.load_state_dict,
            ),
            StatefulPart("best", lambda: self.store.best, partial(setattr, self.store, "best")),
            StatefulPart("meters", metrics.state_dict, self._load_meters),
        ]
        if any(True for _ in criterion.parameters()):
            parts.insert(0, StatefulPart("criterion", criterion.state_dict, criterion.load_state_dict))
        if ema is not None:  # may start from the model's weights
            parts.append(
                StatefulPart("ema", ema.extra_state, lambda state: ema.resume(self._own_part(state, ema), self.model))
            )
        return parts

    def _own_part(self, state: Mapping[str, Any], ema: EMA) -> Mapping[str, Any]:
        return self.peers.placed(state, ema.extra_state())

    def _load_weights(self, weights: dict[str, Tensor], source: str) -> None:
        load_weights(self.model, weights, self.cfg.model, source, strict=True)
        precision.restore_masters(self.optimizer, weights)

    def _load_meters(self, state: dict[str, Any]) -> None:
        metrics.load_state_dict(state)
        # The time between the two runs is nobody's training time.
        metrics.log_start_time("wall", priority=790, round=0)

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Mapping[str, Any] | None = None,
        reset_meters: bool = False,
        fallbacks: Sequence[str] = (),
    ) -> dict[str, Any] | None:
        """Take over the parts in ``filename`` that are not reset; returns its ``extra_state`` (None: no file).

        ``fallbacks`` are taken instead, in their order, when it is damaged.
        """
        if not PathManager.exists(filename):
            logger.info("No existing checkpoint found %s", filename)
            return None
        logger.info("Preparing to load checkpoint %s", filename)
        try:
            checkpoint = read(filename, with_config=False, shards=self.peers.shards)
        except CheckpointError as error:
            if not fallbacks:
                raise
            logger.warning("%s; going on from the one before, %s", error, fallbacks[0])
            kept = (reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
            return self.load_checkpoint(fallbacks[0], *kept, fallbacks[1:])
        try:
            states = from_checkpoint(checkpoint, Resets(reset_optimizer, reset_lr_scheduler, reset_meters))
            for part in self.parts(filename, optimizer_overrides):
                if part.name in states:
                    part.load(states[part.name])
            position = checkpoint["extra_state"]["train_iterator"]
            epoch = position["epoch"]
            count_batches(position, checkpoint)
        except MisfitError as error:
            hint = other_variants(checkpoint.get("cfg"), self.cfg.model)
            raise CheckpointError(misfit(self.cfg.model, checkpoint, filename) or f"{error}{hint}") from error
        except FairseqError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint {filename} is malformed: {error!r}") from error
        keep_bpe(self.cfg, checkpoint, filename)
        logger.info("Loaded checkpoint %s (epoch %d @ %d updates)", filename, epoch, self._num_updates)
        return checkpoint["extra_state"]

    def save_checkpoint(
        self,
        epoch_itr: EpochBatchIterator,
        val_loss: float | None,
        forced: bool = False,
        position: Mapping[str, Any] | None = None,
    ) -> Path | None:
        """Write the files that are due now, one at least if ``forced`` (``store`` decides); returns the first one.

        ``position``: where to go on, if not where ``epoch_itr`` is.
        """
        save = Save(epoch_itr.epoch, self._num_updates, epoch_itr.end_of_epoch(), val_loss, forced)
        place, directory = position or epoch_itr.state_dict(), self.cfg.checkpoint.save_dir
        apart, together = self.store.writers is not None, self.peers.shares_passes
        states = self.states() if together and not apart and distributed.of_first(self.store.writes(save)) else None
        if not (apart or self.is_data_parallel_master):
            self.store.note(val_loss)
            return None
        return self.store.save(
            lambda: with_finite_weights(self.state_dict(place, val_loss, states), self.model, directory), *save
        )

    def states(self, whole: bool = True) -> dict[str, Any]:
        """The states of all `parts`; ``whole`` on the first process: processes that `share passes` collect them together."""
        states = {part.name: part.state() for part in self.parts()}
        return self.peers.whole(states) if whole else states

    def state_dict(
        self, position: Mapping[str, Any], val_loss: float | None, states: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The checkpoint at ``position``, the state of the data iterator; of ``states``, if they have been collected."""
        states = self.states(whole=self.store.writers is None) if states is None else states
        return build_state(make_absolute(config_to_state(self.cfg)), states, position, val_loss)

    def _save_crash(self) -> None:
        """Keep the state of an update that failed, for inspection."""
        if self.cfg.checkpoint.no_save or not (self.is_data_parallel_master or self.peers.shares_passes):
            return
        states = self.states()
        if self.is_data_parallel_master:
            nowhere = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
            self.store.save_crash(self.state_dict(nowhere, None, states))
