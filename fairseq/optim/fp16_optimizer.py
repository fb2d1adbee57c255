"""Training in float16 or bfloat16: the model holds rounded weights, the optimizer float32 ones ("masters").

Gradients stay in the model's type; they are converted inside the update. What they are to be multiplied by (loss
scale, sample size, clipping) is collected in one factor that the update applies. Classes and file keep the original's
names, which are stored in checkpoints and imported by tests.

Float16 gradients underflow, so the loss is multiplied by a scale before backward and the gradients are divided by it.
The scale doubles after a window of good updates and halves when a gradient overflows; that update is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim.fairseq_optimizer import (
    Factor,
    FairseqOptimizer,
    LowPrecision,
    WrappedOptimizer,
    as_factor,
    build_optimizer,
    clip_coefficient,
    gradient_norm,
    named_trainable,
)
from fairseq.optim.parameter_groups import copy_tags, tagged_options
from fairseq.registry import OPTIMIZERS

_COUNTERS = ("iter", "last_overflow", "last_rescale", "overflows_since_rescale")


class DynamicLossScaler:
    """A loss scale that follows the overflows.

    Args: ``init_scale``; ``scale_factor`` by which it grows and shrinks; ``scale_window``, the number of updates after
    an overflow (or after the last window) before it grows; ``tolerance``, the fraction of overflows since the last change
    from which it shrinks (0: at each one); ``threshold``, below which it does not shrink (None: none);
    ``min_loss_scale``, at or below which training gives up.
    """

    def __init__(
        self,
        init_scale: float = 2.0**15,
        scale_factor: float = 2.0,
        scale_window: int = 2000,
        tolerance: float = 0.0,
        threshold: float | None = None,
        min_loss_scale: float = 1e-4,
    ) -> None:
        self.loss_scale = init_scale
        self.scale_factor = scale_factor
        self.scale_window = scale_window
        self.tolerance = tolerance
        self.threshold = threshold
        self.min_loss_scale = min_loss_scale
        self._iter = 0
        self._last_overflow = -1
        self._last_rescale = -1
        self._overflows_since_rescale = 0

    def scale(self, outputs: Tensor) -> Tensor:
        return self.loss_scale * outputs

    def update(self) -> None:
        """Count a good update; at the end of a window the scale grows."""
        if (self._iter - self._last_overflow) % self.scale_window == 0:
            self.loss_scale *= self.scale_factor
            self._last_rescale = self._iter
        self._iter += 1

    def check_overflow(self, grad_norm: float | Tensor) -> None:
        """Return for a finite ``grad_norm``; otherwise count an overflow and raise.

        Raises OverflowError (skip this update), or FloatingPointError when the scale has become too small.
        """
        if math.isfinite(float(grad_norm)):
            return
        previous = self.loss_scale
        self._last_overflow = self._iter
        self._overflows_since_rescale += 1
        fraction = self._overflows_since_rescale / (self._iter - self._last_rescale)
        if fraction >= self.tolerance:
            self.loss_scale = max(self.loss_scale / self.scale_factor, self.threshold or 0.0)
            self._last_rescale = self._iter
            self._overflows_since_rescale = 0
        if self.loss_scale <= self.min_loss_scale:
            self.loss_scale = previous
            raise FloatingPointError(
                f"the loss scale has fallen to its minimum ({self.min_loss_scale}): the loss is probably exploding; "
                "try a lower learning rate, gradient clipping or a larger batch"
            )
        self._iter += 1
        raise OverflowError(f"gradient overflow; the loss scale is now {self.loss_scale}")

    def state_dict(self) -> dict[str, Any]:
        """The counters, without the scale itself (which checkpoints have kept in a place of its own)."""
        return {name: getattr(self, f"_{name}") for name in _COUNTERS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _COUNTERS:
            setattr(self, f"_{name}", int(state[name]))


def build_scaler(cfg: Any) -> DynamicLossScaler | None:
    """The loss scaler of the root configuration ``cfg``; bfloat16 has float32's range and needs none."""
    common = cfg.common
    if getattr(common, "bf16", False) or getattr(common, "memory_efficient_bf16", False):
        return None
    window = getattr(common, "fp16_scale_window", None)
    if window is None:
        update_freq = list(cfg.optimization.update_freq)
        together = getattr(cfg.optimization, "batches_per_update", 0)
        if len(update_freq) > 1 and not together:
            raise ConfigError(
                f"update_freq is a schedule ({update_freq}), so fp16_scale_window has no natural default; set it"
            )
        window = int(2**14 / (together or cfg.distributed_training.distributed_world_size * update_freq[0]))
    if window < 1:
        raise ConfigError(f"fp16_scale_window must be at least 1, but is {window}")
    return DynamicLossScaler(
        init_scale=common.fp16_init_scale,
        scale_window=window,
        tolerance=common.fp16_scale_tolerance,
        threshold=common.threshold_loss_scale,
        min_loss_scale=common.min_loss_scale,
    )


class _HalfOptimizer(WrappedOptimizer):
    """What both variants share: scaling the loss, the factor on the gradients, clipping, overflow."""

    def __init__(self, cfg: Any, params: Iterable[Any], inner: FairseqOptimizer) -> None:
        super().__init__(cfg, inner)
        self.named_params = named_trainable(params)
        self.fp16_params = [param for _, param in self.named_params]
        self.scaler = build_scaler(cfg)
        self._factor: Factor = 1.0

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state, ``loss_scale``, and the scaler's counters (not known to the original)."""
        state = self.fp32_optimizer.state_dict()
        if self.scaler is not None:
            state["loss_scale"] = self.scaler.loss_scale
            state["loss_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: Mapping[str, Any] | None = None) -> None:
        if self.scaler is not None:
            self.scaler.loss_scale = float(state_dict.get("loss_scale", self.scaler.loss_scale))
            if "loss_scaler" in state_dict:
                self.scaler.load_state_dict(state_dict["loss_scaler"])
        self.fp32_optimizer.load_state_dict(state_dict, optimizer_overrides)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def multiply_grads(self, c: float | Tensor) -> None:
        self._factor = self._factor * as_factor(c)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """As the base class. Raises OverflowError or FloatingPointError as the loss scaler does."""
        norm = self.clip_unread(max_norm)
        self.check_norm(norm)
        return norm

    def clip_unread(self, max_norm: float) -> Tensor:
        norm = gradient_norm(self.fp16_params) * self._factor
        if max_norm > 0:
            # The original's float16 rule has no epsilon; the bfloat16 one has.
            eps = 1e-6 if self.scaler is None else 0.0
            self._factor = self._factor * clip_coefficient(norm, max_norm, eps)
        return norm

    def check_norm(self, norm: Tensor) -> None:
        if self.scaler is not None:
            self.scaler.check_overflow(norm)

    def step(self) -> None:
        self._update(self._factor)
        if self.scaler is not None:
            self.scaler.update()

    def _update(self, factor: Factor) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        for param in self.fp16_params:
            param.grad = None
        self._factor = 1.0 if self.scaler is None else 1.0 / self.scaler.loss_scale


class FP16Optimizer(_HalfOptimizer):
    """float32 masters, in one flat vector (float16, unless fp16_no_flatten_grads or tags) or one per parameter (bfloat16).

    ``fp32_params`` is what the wrapped optimizer updates: ``{device index: flat vector}`` or a list.
    A parameter without gradient counts as one with a gradient of zeros, as in the original.
    """

    def __init__(
        self,
        cfg: Any,
        params: Iterable[Any],
        fp32_optimizer: FairseqOptimizer,
        fp32_params: Mapping[Any, Parameter] | Sequence[Parameter],
    ) -> None:
        super().__init__(cfg, params, fp32_optimizer)
        self.fp32_params = fp32_params
        self._low_precision: LowPrecision
        if isinstance(fp32_params, Mapping):
            self._low_precision = {
                flat: [param for param in self.fp16_params if _device_key(param) == key]
                for key, flat in fp32_params.items()
            }
        else:
            self._low_precision = {master: [param] for master, param in zip(fp32_params, self.fp16_params, strict=True)}

    @classmethod
    def build_optimizer(cls, cfg: Any, params: Iterable[Any], **kwargs: Any) -> FP16Optimizer:
        """``cfg`` is the root configuration; ``params`` are parameters or ``(name, parameter)`` pairs."""
        named = named_trainable(params)
        flatten = build_scaler(cfg) is not None and not getattr(cfg.common, "fp16_no_flatten_grads", False)
        if flatten and not _decays_by_name(cfg) and not any(tagged_options(param, name) for name, param in named):
            flat = flat_masters([param for _, param in named])
            inner = build_optimizer(cfg.optimizer, list(flat.values()), **kwargs)
            if inner.supports_flat_params:
                return cls(cfg, named, inner, flat)
        masters = [_master(param) for _, param in named]
        pairs = [(name, master) for (name, _), master in zip(named, masters, strict=True)]
        return cls(cfg, named, build_optimizer(cfg.optimizer, pairs, **kwargs), masters)

    def _update(self, factor: Factor) -> None:
        self.fp32_optimizer.step_from(self._low_precision, factor)

    def master_weights(self) -> dict[str, Tensor]:
        """Name -> float32 weights (views of the masters), one entry per distinct trainable parameter."""
        return dict(zip((name for name, _ in self.named_params), self._master_views(), strict=True))

    @torch.no_grad()
    def load_master_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set masters, and the model's rounded weights, from ``weights`` (names as given; others are ignored).

        Raises CheckpointError when a parameter is missing or has another shape.
        """
        for (name, param), master in zip(self.named_params, self._master_views(), strict=True):
            value = weights.get(name)
            if value is None or value.shape != param.shape:
                found = "nothing" if value is None else f"shape {tuple(value.shape)}"
                raise CheckpointError(f"expected weights of shape {tuple(param.shape)} for {name!r}, but found {found}")
            master.copy_(value)
            param.copy_(master)

    def _master_views(self) -> list[Tensor]:
        """The masters in the order and shapes of ``fp16_params``."""
        views: dict[int, Tensor] = {}
        for master, params in self._low_precision.items():
            if len(params) == 1 and master.shape == params[0].shape:
                views[id(params[0])] = master.detach()
                continue
            parts = master.detach().reshape(-1).split([param.numel() for param in params])
            views.update({id(param): part.view(param.shape) for param, part in zip(params, parts, strict=True)})
        return [views[id(param)] for param in self.fp16_params]


class MemoryEfficientFP16Optimizer(_HalfOptimizer):
    """No masters: float32 moments, weights converted only while they are updated, results rounded.

    Kept for old runs and tests; less exact than :class:`FP16Optimizer` (small updates round to nothing). Not so where
    ``params`` are float32, as the shards of a model whose layers get rounded ones.
    """

    def __init__(
        self, cfg: Any, params: Iterable[Any], optimizer: FairseqOptimizer, allow_unsupported: bool = False, **_: Any
    ) -> None:
        if not (allow_unsupported or optimizer.supports_memory_efficient_fp16):
            raise ConfigError(
                f"{type(optimizer).__name__} cannot update half-precision weights without float32 masters; "
                "use --fp16 or --bf16 instead of the memory-efficient variant"
            )
        super().__init__(cfg, params, optimizer)

    @classmethod
    def build_optimizer(cls, cfg: Any, params: Iterable[Any], **kwargs: Any) -> MemoryEfficientFP16Optimizer:
        """``cfg`` is the root configuration; ``params`` are parameters or ``(name, parameter)`` pairs."""
        given = list(params)
        return cls(cfg, given, build_optimizer(cfg.optimizer, given), **kwargs)

    def _update(self, factor: Factor) -> None:
        self.fp32_optimizer.multiply_grads(factor)
        self.fp32_optimizer.step()


def _decays_by_name(cfg: Any) -> bool:
    """Whether the chosen optimizer looks at the names of parameters, which one flat vector does not have."""
    name = getattr(cfg.optimizer, "_name", None)
    if not (isinstance(name, str) and name in OPTIMIZERS and OPTIMIZERS.get(name).decays_by_name):
        return False
    return bool(getattr(cfg.optimizer, "no_decay", None))


def _device_key(param: Tensor) -> int:
    """The key of :func:`flat_masters`: the CUDA device index, and 0 for the CPU."""
    return param.device.index or 0


def _master(param: Parameter) -> Parameter:
    master = Parameter(param.detach().clone().float())
    copy_tags(param, master)
    return master


def flat_masters(params: Sequence[Parameter]) -> dict[int, Parameter]:
    """One float32 vector per device with all of its ``params``, in order."""
    by_device: dict[int, list[Tensor]] = {}
    for param in params:
        by_device.setdefault(_device_key(param), []).append(param.detach().reshape(-1).float())
    return {key: Parameter(torch.cat(parts)) for key, parts in by_device.items()}
