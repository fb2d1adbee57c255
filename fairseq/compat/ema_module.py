"""`EMAModule`: a moving average of one module, which plugins (data2vec) keep for themselves; see also `fairseq.optim.ema`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.dataclass.base import FairseqDataclass, option
from fairseq.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class EMAModuleConfig(FairseqDataclass):
    """Settings of an `EMAModule`."""

    ema_decay: float = option(0.9999, "decay of the moving average")
    ema_fp32: bool = option(False, "average in float32, whatever the module's type")
    add_missing_params: bool = option(True, "accepted without effect: what the average lacks is left out")
    log_norms: bool = option(False, "keep the norms of the average and of its change, as `logs`")


class EMAModule:
    """A copy of ``model`` that follows it at every `step`: ema <- d * ema + (1 - d) * model.

    Parameters are averaged, buffers and what ``skip_keys`` names are copied.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any,
        copy_model: bool = True,
        device: torch.device | str | None = None,
        skip_keys: Collection[str] | None = None,
    ) -> None:
        if isinstance(config, Mapping):
            config = EMAModuleConfig(**config)
        self.config = config
        self.decay: float = config.ema_decay
        self.skip_keys: Collection[str] = set(skip_keys or ())
        self.model = copy.deepcopy(model) if copy_model else model
        self.model.requires_grad_(False)
        if device is not None:
            logger.info("copying the EMA module to device %s", device)
            self.model = self.model.to(device=device)
        self.fp32_params: dict[str, Tensor] = {}
        self.logs: dict[str, float] = {}
        if config.ema_fp32:
            self.build_fp32_params()

    def build_fp32_params(self, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Make the float32 copies of the average, or take them from ``state_dict``."""
        if not self.config.ema_fp32:
            raise ConfigError("float32 copies of an EMA module need ema_fp32 in its configuration")
        for key, value in (self.model.state_dict() if state_dict is None else state_dict).items():
            average = value.detach().float() if value.is_floating_point() else value.detach()
            if key in self.fp32_params:
                self.fp32_params[key].copy_(average)
            else:
                self.fp32_params[key] = average.clone()

    def restore(self, state_dict: Mapping[str, Tensor], build_fp32_params: bool = False) -> None:
        """Load weights into the average."""
        self.model.load_state_dict(dict(state_dict), strict=False)
        if build_fp32_params:
            self.build_fp32_params(state_dict)

    def set_decay(self, decay: float, weight_decay: float | None = None) -> None:
        self.decay = decay
        if weight_decay is not None:
            raise ConfigError("EMAModule.set_decay takes no weight_decay: averages do not decay to zero here")

    def get_decay(self) -> float:
        return self.decay

    def step(self, new_model: nn.Module) -> None:
        """Follow ``new_model``, which was updated."""
        self._step_internal(new_model)

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module) -> None:
        averages, current = self.model.state_dict(), new_model.state_dict()
        averaged = {name for name, _ in new_model.named_parameters(remove_duplicate=False)}
        done: set[int] = set()  # tied weights are one tensor under several names
        change = size = 0.0
        for key, value in current.items():
            target = averages.get(key)
            if target is None:
                continue
            if target.shape != value.shape:
                raise ValueError(
                    f"{key!r} has shape {tuple(value.shape)} in the model, {tuple(target.shape)} in the EMA"
                )
            if key not in averaged or key in self.skip_keys or not target.is_floating_point():
                target.copy_(value)
                continue
            if target.data_ptr() in done:
                continue
            done.add(target.data_ptr())
            average = self.fp32_params.setdefault(key, target.float()) if self.config.ema_fp32 else target
            difference = (value.to(average) - average) * (1 - self.decay)
            average.mul_(self.decay).add_(value.to(average), alpha=1 - self.decay)
            if average is not target:
                target.copy_(average)
            if self.config.log_norms:
                change += float(difference.float().pow(2).sum())
                size += float(average.float().pow(2).sum())
        if self.config.log_norms:
            self.logs = {"model_norm": size**0.5, "ema_norm": change**0.5}

    @torch.no_grad()
    def reverse(self, model: nn.Module) -> nn.Module:
        """Load the average into ``model`` and return it."""
        model.load_state_dict(self.model.state_dict(), strict=False)
        return model
