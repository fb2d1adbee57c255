"""One optimizer update: accumulate the gradient of several micro-batches, normalise, clip, step.

The gradient of an update is the sum of the losses' gradients over its micro-batches, divided by the sum of their
sample sizes (masked tokens), so that the split into micro-batches does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairseq.errors import NonFiniteError
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.training.nan_detector import NanDetector, first_bad_gradient, first_bad_parameter, keep_gradients

if TYPE_CHECKING:
    from fairseq.training.trainer import Trainer

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
