"""What is trained: parameters that are frozen, those that the optimizer gets, and the average of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fairseq.checkpoint.reader import read
from fairseq.errors import TrainingError
from fairseq.optim.ema import EMA
from fairseq.optim.parameter_groups import freeze, scale_rates


def prepare(model: nn.Module, criterion: nn.Module, section: Any) -> None:
    """Freeze parameters, and scale learning rates, as ``section`` (``optimization``) says."""
    named = (*model.named_parameters(), *criterion.named_parameters())
    freeze(named, section.freeze)
    scale_rates(named, section.lr_scales)


def trainable(model: nn.Module, criterion: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What the optimizer updates. Raises TrainingError where there is nothing."""
    owners = (*model.named_parameters(), *criterion.named_parameters())
    named = [(name, parameter) for name, parameter in owners if parameter.requires_grad]
    if not named:
        raise TrainingError("the model has no trainable parameter; check what it freezes")
    return named


def averaged_model(model: nn.Module, section: Any, place: Callable[[nn.Module], Any] | None) -> EMA | None:
    """The average of ``model`` that ``section`` (``ema``) asks for; ``place`` does with it what is done with the model."""
    if not section.store_ema:
        return None
    seed = section.ema_seed_model
    weights = read(seed, with_config=False)["model"] if seed else None
    return EMA(model, section, seed_state=weights, place=place)
