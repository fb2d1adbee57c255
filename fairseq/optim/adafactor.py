"""Adafactor (Shazeer and Stern, 2018; ``--optimizer adafactor``): the second moments of a matrix kept as rows and columns."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fairseq.dataclass.base import literal
from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim.configs import FairseqAdafactorConfig
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, learning_rates, register_optimizer
from fairseq.optim.float32_update import Float32Update, undecorated

logger = logging.getLogger(__name__)


def root_mean_square(tensor: Tensor) -> Tensor:
    return tensor.norm(2) / tensor.numel() ** 0.5


class Adafactor(Float32Update):
    """State per parameter: ``step``, ``RMS`` of the weights, ``exp_avg_sq_row`` (..., N) and ``exp_avg_sq_col`` (..., M) for
    (..., N, M), ``exp_avg_sq`` for vectors, and ``exp_avg`` where there is a first moment.

    With ``relative_step`` the learning rate is min(0.01, 1 / sqrt(t)) (with ``warmup_init`` min(1e-6 t, 1 / sqrt(t))).
    ``scale_parameter`` multiplies it by the root mean square of each parameter, at least ``eps[1]``. Without
    ``relative_step`` the product stays in the group, as in the original, where the next parameter multiplies it again.
    Away from the CPU it stays on the device: reading it would wait there, once for each parameter.
    """

    supports_flat_params = False  # rows and columns belong to one parameter

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise ConfigError("relative_step makes its own learning rate: leave out lr")
        if warmup_init and not relative_step:
            raise ConfigError("warmup_init is a beginning of relative_step: give --relative-step, too")
        options = {"lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": beta1}
        flags = {"scale_parameter": scale_parameter, "relative_step": relative_step, "warmup_init": warmup_init}
        super().__init__(params, {**options, "weight_decay": weight_decay, **flags})

    def update(self, weights: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" not in state:
            state.update(_fresh(grad, group["beta1"] is not None))
        state["step"] += 1
        state["RMS"] = root_mean_square(weights)
        lr = group["lr"] = self._learning_rate(group, state)
        change = _second_moment(grad, state, group).mul_(grad)
        change.div_((root_mean_square(change) / group["clip_threshold"]).clamp_(min=1.0))
        change.mul_(lr)
        if group["beta1"] is not None:
            mean = state["exp_avg"]
            change = mean.mul_(group["beta1"]).add_(change, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            if torch.is_tensor(lr):
                weights.mul_(1 - group["weight_decay"] * lr)
            else:
                weights.add_(weights, alpha=-group["weight_decay"] * lr)
        weights.sub_(change)

    @staticmethod
    def _learning_rate(group: dict[str, Any], state: dict[str, Any]) -> Any:
        """A number, or where it depends on weights that are not on the CPU, a tensor () on their device."""
        lr, step, scale = group["lr"], state["step"], state["RMS"]
        if group["relative_step"]:
            lr = min(1e-6 * step if group["warmup_init"] else 1e-2, 1.0 / math.sqrt(step))
        if not group["scale_parameter"]:
            return lr
        return lr * (max(group["eps"][1], float(scale)) if scale.is_cpu else scale.clamp(min=group["eps"][1]))

    def state_dict(self) -> dict[str, Any]:
        """As the base class; learning rates are numbers."""
        state = undecorated(torch.optim.Optimizer.state_dict)(self)
        groups = [
            {**group, "lr": float(group["lr"])} if torch.is_tensor(group["lr"]) else group
            for group in state["param_groups"]
        ]
        return {**state, "param_groups": groups}

    def _check_entry(self, entry: dict[str, Any], index: int) -> None:
        if "RMS" not in entry:
            raise CheckpointError(
                f"the optimizer state of the checkpoint has no RMS for parameter {index}: it was not written by adafactor; "
                "start it afresh with --reset-optimizer"
            )


def _fresh(grad: Tensor, first_moment: bool) -> dict[str, Any]:
    """The state of a parameter (..., N, M) or (N,) before its first update."""
    state: dict[str, Any] = {"step": 0}
    if first_moment:
        state["exp_avg"] = torch.zeros_like(grad)
    if grad.dim() >= 2:
        state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
        state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
    else:
        state["exp_avg_sq"] = torch.zeros_like(grad)
    return state


def _second_moment(grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """Update the averages of squares; one over the square root of what they estimate, in the shape of ``grad``."""
    beta2 = 1.0 - math.pow(state["step"], group["decay_rate"])
    squares = grad**2 + group["eps"][0]
    if grad.dim() < 2:
        return state["exp_avg_sq"].mul_(beta2).add_(squares, alpha=1.0 - beta2).rsqrt()
    rows = state["exp_avg_sq_row"].mul_(beta2).add_(squares.mean(dim=-1), alpha=1.0 - beta2)
    columns = state["exp_avg_sq_col"].mul_(beta2).add_(squares.mean(dim=-2), alpha=1.0 - beta2)
    rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return rows * columns.unsqueeze(-2).rsqrt()


@register_optimizer("adafactor", dataclass=FairseqAdafactorConfig)
class FairseqAdafactor(FairseqOptimizer):
    """The class name is stored in checkpoints."""

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if cfg.scale_parameter and not cfg.relative_step:
            logger.warning(
                "adafactor: scale_parameter without relative_step multiplies the learning rate by the scale of one "
                "parameter after the other, as in the original; give --relative-step, too"
            )
        self._optimizer = Adafactor(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": None if self.cfg.relative_step else learning_rates(self.cfg)[0],
            "eps": _pair(self.cfg.adafactor_eps),
            "clip_threshold": self.cfg.clip_threshold,
            "decay_rate": self.cfg.decay_rate,
            "beta1": self.cfg.beta1,
            "weight_decay": self.cfg.weight_decay,
            "scale_parameter": self.cfg.scale_parameter,
            "relative_step": self.cfg.relative_step,
            "warmup_init": self.cfg.warmup_init,
        }


def _pair(value: Any) -> tuple[float, float]:
    """The two epsilons, from a literal or a sequence."""
    try:
        first, second = map(float, literal(value, "adafactor_eps") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ConfigError(f'adafactor_eps must be two numbers such as "(1e-30, 1e-3)", but is {value!r}') from None
    if not (0 < first < math.inf and 0 < second < math.inf):
        raise ConfigError(f"adafactor_eps must be above 0, but is {first}, {second}")
    return first, second
