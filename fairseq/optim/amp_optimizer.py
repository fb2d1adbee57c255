"""Automatic mixed precision (``--amp``): float32 weights, autocast around the training forward pass.

On CUDA autocast computes in float16 with torch's gradient scaler, or with ``--amp-dtype bf16`` in bfloat16, which needs no
scaling; on the CPU always in bfloat16.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq.optim.fairseq_optimizer import FairseqOptimizer, WrappedOptimizer, build_optimizer


class LossScale(torch.amp.GradScaler):
    """torch's scaler with the ``loss_scale`` that the trainer logs, and the value at which training gives up."""

    min_loss_scale: float

    @property
    def loss_scale(self) -> float:
        return self.get_scale()

    def unread(self) -> float | Tensor:
        """The present scale, left where it is."""
        return self._init_scale if self._scale is None else self._scale.clone()


class AMPOptimizer(WrappedOptimizer):
    """Wraps a float32 optimizer; the class name is stored in checkpoints.

    Differences from the original: ``amp_init_scale`` and ``amp_scale_window`` mean what they say (the original took
    the first from ``fp16_init_scale`` and used the other's value for the second), and the scaler's state is saved.
    """

    def __init__(
        self, cfg: Any, params: Iterable[Any], fp32_optimizer: FairseqOptimizer, device_type: str | None = None
    ) -> None:
        """``device_type``: where the model is; default: that of the parameters."""
        super().__init__(cfg, fp32_optimizer)
        first = next(fp32_optimizer.params)
        self.device_type = device_type or first.device.type
        half = getattr(cfg.common, "amp_dtype", "fp16") == "fp16" and self.device_type == "cuda"
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler: LossScale | None = None
        if half:
            self.scaler = build_amp_scaler(cfg.common, self.device_type)

    @classmethod
    def build_optimizer(cls, cfg: Any, params: Iterable[Any], **kwargs: Any) -> AMPOptimizer:
        """``cfg`` is the root configuration; ``params`` are parameters or ``(name, parameter)`` pairs."""
        given = list(params)
        return cls(cfg, given, build_optimizer(cfg.optimizer, given), **kwargs)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device_type, dtype=self.dtype)

    def state_dict(self) -> dict[str, Any]:
        state = self.fp32_optimizer.state_dict()
        if self.scaler is not None:
            state["loss_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: Mapping[str, Any] | None = None) -> None:
        saved = state_dict.get("loss_scaler", {})
        if self.scaler is not None and "growth_factor" in saved:
            self.scaler.load_state_dict(saved)
        self.fp32_optimizer.load_state_dict(state_dict, optimizer_overrides)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def multiply_grads(self, c: float | Tensor) -> None:
        self.fp32_optimizer.multiply_grads(c)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """As the base class, after undoing the loss scale.

        Raises OverflowError when the norm is not finite (the scale has been halved; repeat or drop the batch), or
        FloatingPointError when the scale has become too small.
        """
        norm = self.clip_unread(max_norm)
        self.check_norm(norm)
        return norm

    def clip_unread(self, max_norm: float) -> Tensor:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return self.fp32_optimizer.clip_grad_norm(max_norm)

    def check_norm(self, norm: Tensor) -> None:
        scaler = self.scaler
        if scaler is None or math.isfinite(float(norm)):
            return
        before = scaler.loss_scale
        scaler.update()
        if scaler.loss_scale >= before:  # finite gradients here, but not their norm, or not on another worker
            scaler.update(before * scaler.get_backoff_factor())
            scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})  # as where they are not
        if scaler.loss_scale <= scaler.min_loss_scale:
            raise FloatingPointError(
                f"the loss scale has fallen to its minimum ({scaler.min_loss_scale}): the loss is probably "
                "exploding; try a lower learning rate, gradient clipping or a larger batch"
            )
        raise OverflowError(f"gradient overflow; the loss scale is now {scaler.loss_scale}")

    def step(self) -> None:
        self.fp32_optimizer.step()
        if self.scaler is not None:
            self.scaler.update()

    def zero_grad(self) -> None:
        self.fp32_optimizer.zero_grad()


def build_amp_scaler(common: Any, device_type: str) -> LossScale:
    """The gradient scaler of ``cfg.common``; a growth window of None is torch's default (2000 updates)."""
    window = getattr(common, "amp_scale_window", None)
    scaler = LossScale(
        device_type, init_scale=float(common.amp_init_scale), growth_interval=2000 if window is None else window
    )
    scaler.min_loss_scale = common.min_loss_scale
    return scaler
