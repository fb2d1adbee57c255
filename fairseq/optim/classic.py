"""Optimizers of old recipes with definitions of their own: Nesterov's (``nag``), ``adamax``, and ``lamb``.

They differ from torch's and the published ones in what their docstrings say; numbers and state keys are those that old
checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fairseq.optim.adam import parse_betas
from fairseq.optim.configs import FairseqAdamaxConfig, FairseqLAMBConfig, FairseqNAGConfig
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, learning_rates, register_optimizer, total_norm
from fairseq.optim.float32_update import Float32Update


class NAG(Float32Update):
    """Nesterov's accelerated gradient; the velocity v has the learning rate a in it and is rescaled when that changes.

    With c = a / (a of the update before), momentum m and gradient g: w <- (1 - a * decay) w + m^2 c v - (1 + m) a g;
    v <- m c v - a g.
    """

    moments = ("momentum_buffer",)

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "lr_old": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step_group(self, group: dict[str, Any], params: list[Parameter]) -> None:
        super().step_group(group, params)
        group["lr_old"] = group["lr"]

    def update(self, weights: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        lr, momentum, velocity = group["lr"], group["momentum"], state["momentum_buffer"]
        old = group.get("lr_old", lr)
        correct = lr / old if old > 0 else lr
        if group["weight_decay"] != 0:
            weights.mul_(1 - lr * group["weight_decay"])
        weights.add_(velocity, alpha=momentum * momentum * correct)
        weights.add_(grad, alpha=-(1 + momentum) * lr)
        velocity.mul_(momentum * correct).add_(grad, alpha=-lr)


@register_optimizer("nag", dataclass=FairseqNAGConfig)
class FairseqNAG(FairseqOptimizer):
    """The class name is stored in checkpoints."""

    elementwise = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = NAG(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "momentum": self.cfg.momentum,
            "weight_decay": self.cfg.weight_decay,
        }


class Adamax(Float32Update):
    """Kingma and Ba (2015), algorithm 2, with decoupled weight decay; epsilon is added to the norm where it divides.

    With gradient g: m <- b1 m + (1 - b1) g; u <- max(b2 u, |g|); w <- (1 - lr * decay) w - lr / (1 - b1^t) * m / (u + eps).
    """

    moments = ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "bias_correction": bias_correction})

    def update(self, weights: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        mean, largest = state["exp_avg"], state["exp_inf"]
        state["step"] = state.get("step", 0) + 1
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        torch.maximum(largest.mul_(beta2), grad.abs(), out=largest)
        size = group["lr"] / (1 - beta1 ** state["step"]) if group["bias_correction"] else group["lr"]
        if group["weight_decay"] != 0:
            weights.add_(weights, alpha=-group["weight_decay"] * group["lr"])
        weights.addcdiv_(mean, largest.add(group["eps"]), value=-size)


@register_optimizer("adamax", dataclass=FairseqAdamaxConfig)
class FairseqAdamax(FairseqOptimizer):
    """The class name is stored in checkpoints."""

    elementwise = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = Adamax(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.adamax_betas, "adamax_betas"),
            "eps": self.cfg.adamax_eps,
            "weight_decay": self.cfg.weight_decay,
            "bias_correction": not self.cfg.no_bias_correction,
        }


class LAMB(Float32Update):
    """You et al. (2020) as apex's FusedLAMB computes it, which the original called.

    All gradients together are clipped to norm 1 in any case. With the clipped gradient g: m and v as in Adam, both corrected
    for their bias; u = m / (sqrt(v) + eps) + decay * w; w <- w - lr * r * u, where the trust ratio r of a parameter is
    |w| / |u|, but 1 where one of the norms is 0, or where there is no decay. The updates are counted per group (``step``).
    """

    moments = ("exp_avg", "exp_avg_sq")
    supports_flat_params = False  # the trust ratio depends on the parameter
    max_grad_norm = 1.0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._scale: Tensor = torch.ones(())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        norm = total_norm(
            [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]
        )
        self._scale = (norm / self.max_grad_norm).clamp(min=1.0)  # left where it is: reading it would wait for a device
        super().step()

    def step_group(self, group: dict[str, Any], params: list[Parameter]) -> None:
        group["step"] = group.get("step", 0) + 1
        super().step_group(group, params)

    def update(self, weights: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        (beta1, beta2), mean, square = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        grad = grad / self._scale
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        spread = square.div(1 - beta2 ** group["step"]).sqrt_().add_(group["eps"])
        change = mean.div(1 - beta1 ** group["step"]).div_(spread)
        if group["weight_decay"] != 0:
            change.add_(weights, alpha=group["weight_decay"])
            ratio = weights.norm() / change.norm()
            change.mul_(torch.where(ratio.isfinite() & ratio.ne(0), ratio, 1.0))
        weights.add_(change, alpha=-group["lr"])


@register_optimizer("lamb", dataclass=FairseqLAMBConfig)
class FairseqLAMB(FairseqOptimizer):
    """The class name is stored in checkpoints."""

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = LAMB(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.lamb_betas, "lamb_betas"),
            "eps": self.cfg.lamb_eps,
            "weight_decay": self.cfg.weight_decay,
        }
