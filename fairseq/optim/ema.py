"""Exponential moving average of a model's weights (``--store-ema``)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


class EMA:
    """A copy of ``model``, the EMA model, that follows it: ema <- d * ema + (1 - d) * model, every ema_update_freq updates.

    Every entry of the state dict takes part, except the ``version`` buffers (kept) and integer tensors (copied).
    ``config``: ema_decay (d), ema_start_update (d is 0 before), ema_update_freq, ema_fp32 (average in float32 copies,
    for a half-precision model), ema_seed_model (a checkpoint whose weights the EMA model starts from).
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        device: torch.device | str | None = None,
        skip_keys: Collection[str] | None = None,
        seed_state: Mapping[str, Tensor] | None = None,
        place: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        """``skip_keys`` are copied, not averaged; ``seed_state``: the loaded weights of config.ema_seed_model.

        ``place`` does with the copy what will be done with the model (sharding).
        """
        self.config = config
        self.decay = config.ema_decay
        self.skip_keys = set(skip_keys or ())
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.fp32_params: dict[str, Tensor] = {}
        self.update_freq_counter = 0
        if getattr(config, "ema_seed_model", None) is not None:
            if seed_state is None:
                raise ConfigError(f"ema_seed_model is {config.ema_seed_model!r}, but its weights were not loaded")
            self.model.load_state_dict(dict(seed_state), strict=True)
        if place is not None:
            place(self.model)
        if device is not None:
            logger.info(f"Copying EMA model to device {device}")
            self.model = self.model.to(device=device)
        if config.ema_fp32:
            self.build_fp32_params()

    def get_model(self) -> nn.Module:
        """The EMA model."""
        return self.model

    def get_decay(self) -> float:
        """The decay of the latest update."""
        return self.decay

    def _set_decay(self, decay: float) -> None:
        self.decay = decay

    def build_fp32_params(self, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Make the float32 copies, or update existing ones, from ``state_dict`` (default: the EMA model's own).

        Raises ConfigError when ema_fp32 is off.
        """
        if not self.config.ema_fp32:
            raise ConfigError("float32 copies of the EMA weights need ema_fp32; set it (--ema-fp32)")
        state = self.model.state_dict() if state_dict is None else state_dict
        for key, value in state.items():
            if key in self.fp32_params:
                self.fp32_params[key].copy_(value)
            else:
                self.fp32_params[key] = _to_float32(value)

    def restore(self, state_dict: Mapping[str, Tensor], build_fp32_params: bool = False) -> None:
        """Load weights into the EMA model; ``build_fp32_params`` makes the float32 copies from the same weights."""
        self.model.load_state_dict(dict(state_dict), strict=False)
        if build_fp32_params:
            self.build_fp32_params(state_dict)

    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint stores (entries of its ``extra_state``)."""
        state: dict[str, Any] = {"ema": self.model.state_dict()}
        if self.config.ema_fp32:
            state["ema_fp32_params"] = dict(self.fp32_params)
        return state

    def resume(self, extra_state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from a checkpoint's extra state (entries ``ema`` and, with ema_fp32, ``ema_fp32_params``).

        A checkpoint without them (trained without EMA) starts at the weights of ``model``. Raises
        CheckpointError when what is stored does not fit.
        """
        saved = extra_state.get("ema")
        if saved is None:
            logger.warning("the checkpoint has no EMA weights; starting at the model's current weights")
            saved = model.state_dict()
        shapes = {key: value.shape for key, value in self.model.state_dict().items()}
        for key, value in saved.items():
            if key in shapes and shapes[key] != value.shape:
                raise CheckpointError(
                    f"the checkpoint's EMA weight {key!r} has shape {tuple(value.shape)}, but the model needs "
                    f"{tuple(shapes[key])}"
                )
        self.restore(saved)
        if self.config.ema_fp32:
            self.build_fp32_params(extra_state.get("ema_fp32_params", saved))

    def step(self, new_model: nn.Module, updates: int | None = None) -> None:
        """Note that ``new_model`` was updated; ``updates`` is the number of its updates, if known."""
        if updates is not None:
            self._set_decay(0 if updates < self.config.ema_start_update else self.config.ema_decay)
        freq = self.config.ema_update_freq
        self.update_freq_counter += 1
        # By the number of updates where it is known, so that a resumed run averages at the same ones.
        if (self.update_freq_counter if updates is None else updates) % freq != 0:
            return
        self._step_internal(new_model, updates)

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module, updates: int | None = None) -> None:
        averages = self.model.state_dict()
        for key, value in new_model.state_dict().items():
            target = averages.get(key)
            if target is None or "version" in key:
                continue
            if target.shape != value.shape:
                raise ValueError(
                    f"{key!r} has shape {tuple(value.shape)} in the model, {tuple(target.shape)} in the EMA"
                )
            if not target.is_floating_point() or key in self.skip_keys:
                target.copy_(value)
                continue
            average = self.fp32_params.setdefault(key, _to_float32(target)) if self.config.ema_fp32 else target
            # A shared tensor (the tied output matrix) stands here under each of its names and ages as often: runs of the
            # original average it so.
            average.mul_(self.decay).add_(value.to(average), alpha=1 - self.decay)
            if average is not target:
                target.copy_(average)

    def reverse(self, model: nn.Module) -> nn.Module:
        """Load the EMA weights into ``model`` (for inference) and return it."""
        model.load_state_dict(self.model.state_dict(), strict=False)
        return model


def _to_float32(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach().clone()
