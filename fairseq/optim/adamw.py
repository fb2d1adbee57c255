"""AdamW as published (``--optimizer adamw``); not in the original fairseq."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter

from fairseq.errors import ConfigError
from fairseq.optim.adam import Adam, DeferredScaling
from fairseq.optim.build import register_optimizer
from fairseq.optim.configs import AdamWConfig


class AdamW(Adam):
    """Epsilon is added to the bias-corrected second moment; Loshchilov and Hutter (2019), algorithm 2."""

    corrected_eps = True


def split_by_decay(named_params: Iterable[tuple[str, Parameter]], no_decay: str) -> tuple[list[Any], list[Any]]:
    """(decayed, not decayed): a parameter goes to the second if its name contains one of the comma-separated pieces."""
    pieces = [piece.strip() for piece in no_decay.split(",") if piece.strip()]
    decayed: list[Parameter] = []
    free: list[Parameter] = []
    for name, param in named_params:
        if pieces and not name:
            raise ConfigError(
                "adamw chooses by name what gets no weight decay, but was built from parameters without names; pass "
                "(name, parameter) pairs or set no_decay to an empty string"
            )
        (free if any(piece in name for piece in pieces) else decayed).append(param)
    return decayed, free


@register_optimizer("adamw", dataclass=AdamWConfig)
class FairseqAdamW(DeferredScaling):
    """Two parameter groups: with weight decay, and without (names matching ``no_decay``)."""

    needs_names = True

    def __init__(self, cfg: Any, named_params: Iterable[tuple[str, Parameter]]) -> None:
        super().__init__(cfg)
        decayed, free = split_by_decay(named_params, cfg.no_decay or "")
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self._optimizer = AdamW([group for group in groups if group["params"]], **self.optimizer_config)

    @property
    def supports_flat_params(self) -> bool:
        return False  # weight decay depends on the parameter
