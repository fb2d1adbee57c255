"""Base of the optimizers that stand around another one for the sake of a low precision."""

from __future__ import annotations

from typing import Any

import torch

from fairseq.optim.fairseq_optimizer import FairseqOptimizer


class WrappedOptimizer(FairseqOptimizer):
    """``fp32_optimizer`` is what does the updates; its options, rate and groups are this one's."""

    def __init__(self, cfg: Any, fp32_optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg)
        self.fp32_optimizer = fp32_optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.fp32_optimizer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.fp32_optimizer.optimizer = optimizer

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return self.fp32_optimizer.optimizer_config

    @property
    def supports_flat_params(self) -> bool:
        return self.fp32_optimizer.supports_flat_params

    def get_lr(self) -> float:
        return self.fp32_optimizer.get_lr()

    def set_lr(self, lr: float) -> None:
        self.fp32_optimizer.set_lr(lr)
