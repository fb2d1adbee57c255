"""Optimizers that are torch's own: stochastic gradient descent (``--optimizer sgd``), Adagrad and Adadelta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fairseq.optim.configs import AdadeltaConfig, AdagradConfig, SGDConfig
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, learning_rates, register_optimizer


@register_optimizer("sgd", dataclass=SGDConfig)
class SGD(FairseqOptimizer):
    """torch's SGD with momentum and L2 weight decay; the class name is stored in checkpoints."""

    supports_flat_params = True
    elementwise = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = torch.optim.SGD(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "momentum": getattr(self.cfg, "momentum", 0.0),
            "weight_decay": getattr(self.cfg, "weight_decay", 0.0),
        }


@register_optimizer("adagrad", dataclass=AdagradConfig)
class Adagrad(FairseqOptimizer):
    """torch's Adagrad with L2 weight decay; the class name is stored in checkpoints."""

    elementwise = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = torch.optim.Adagrad(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {"lr": learning_rates(self.cfg)[0], "weight_decay": getattr(self.cfg, "weight_decay", 0.0)}


@register_optimizer("adadelta", dataclass=AdadeltaConfig)
class Adadelta(FairseqOptimizer):
    """torch's Adadelta with L2 weight decay; the class name is stored in checkpoints."""

    supports_flat_params = True
    elementwise = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = torch.optim.Adadelta(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "rho": self.cfg.adadelta_rho,
            "eps": self.cfg.adadelta_eps,
            "weight_decay": self.cfg.weight_decay,
        }
