"""The base classes of losses, under their old import path; registering and building them.

`CollectingCriterion` is for losses whose scores are those of a whole set, not means over batches.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.errors import ConfigError
from fairseq.layout import Layout, layout_of
from fairseq.logging import metrics
from fairseq.modules.slots import supports
from fairseq.registry import CRITERIONS, RegistryView

logger = logging.getLogger(__name__)


class FairseqCriterion(nn.Module):
    """``criterion(model, sample) -> (loss, sample_size, logging_output)``.

    ``loss`` is a sum in nats; the gradient of an update is its gradient, summed over micro-batches and workers,
    divided by the sum of ``sample_size``.
    """

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task
        dictionary = getattr(task, "target_dictionary", None)
        self.padding_idx = dictionary.pad() if dictionary is not None else -100

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of a criterion without a configuration dataclass (old plugins); else they follow from it."""
        config = getattr(cls, "__dataclass", None)
        if config is not None:
            gen_parser_from_dataclass(parser, config())

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> FairseqCriterion:
        """Call the constructor with what its parameters ask for: ``task``, ``cfg``, settings by name, or defaults."""
        arguments: dict[str, Any] = {}
        for parameter in inspect.signature(cls).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise NotImplementedError(f"{cls.__name__}: parameters of the kind {parameter.kind} are not supported")
            if parameter.name == "task":
                arguments["task"] = task
            elif parameter.name == "cfg":
                arguments["cfg"] = cfg
            elif hasattr(cfg, parameter.name):
                arguments[parameter.name] = getattr(cfg, parameter.name)
            elif parameter.default is parameter.empty:
                raise NotImplementedError(
                    f"{cls.__name__} needs {parameter.name!r}, which its configuration does not have; override "
                    "build_criterion to make it"
                )
        return cls(**arguments)

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Any, dict[str, Any]]:
        raise NotImplementedError

    @staticmethod
    def aggregate_logging_outputs(logging_outputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Old interface, replaced by ``reduce_metrics``."""
        raise NotImplementedError

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log what the outputs of all workers amount to; the base class serves criterions with the old interface."""
        for name, value in cls.aggregate_logging_outputs(logging_outputs).items():
            if name not in ("nsentences", "ntokens", "sample_size"):
                metrics.log_scalar(name, value)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Whether outputs of workers may be added up key by key before ``reduce_metrics``, which is quicker."""
        return False


def layout_for(
    criterion: nn.Module, model: nn.Module, sample: dict[str, Any], name: str = "net_input"
) -> dict[str, Layout]:
    """The argument ``layout`` for ``model`` on the input ``name`` of ``sample``, where there is one and all use it.

    A plugin's criterion that was derived from one of ours may hand it another sample than it got: it has to say that it
    does not (``takes_layout``).
    """
    layout = layout_of(sample, name)
    used = getattr(model, "uses_layout", False) and supports(criterion, "takes_layout", "forward")
    return {"layout": layout} if layout is not None and used else {}


class LegacyFairseqCriterion(FairseqCriterion):
    """The old constructor, ``(args, task)``."""

    def __init__(self, args: Any, task: Any) -> None:
        super().__init__(task=task)
        self.args = args
        logger.warning("%s uses the old interface: derive from FairseqCriterion instead", type(self).__name__)

    @classmethod
    def build_criterion(cls, args: Any, task: Any) -> FairseqCriterion:
        return cls(args, task)


C = TypeVar("C")

CRITERION_REGISTRY = RegistryView(CRITERIONS)


def register_criterion(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: the criterion becomes available as ``name``, with the settings of ``dataclass``."""
    return CRITERIONS.register(name, dataclass=dataclass, base=FairseqCriterion)


def build_criterion(cfg: Any, task: Any) -> FairseqCriterion:
    """The criterion that ``cfg`` names: a node with ``_name``, a Namespace with ``criterion``, or the name itself.

    Raises ConfigError when there is no such criterion, OutOfScopeError when this project has none.
    """
    name = CRITERIONS.chosen(cfg, "criterion")
    if name is None:
        raise ConfigError(f"no criterion is given; known: {', '.join(CRITERIONS.names())}")
    return CRITERIONS.get(name).build_criterion(cfg, task)


def mean_over(total: Any, count: Any) -> Any:
    """``total / count``; over nothing NaN, which meters leave out when it is logged with the weight 0."""
    # A tensor divides by zero to NaN without a transfer from the device to look.
    return total / count if torch.is_tensor(count) or count > 0 else float("nan")


class CollectingCriterion(FairseqCriterion):
    """In evaluation the task's predictions are collected batch by batch, and scored once the set is complete."""

    @staticmethod
    def logging_output(
        loss: Tensor, sample_size: Tensor | int, sample: dict[str, Any], collected: tuple[str, Any, Any] | None = None
    ) -> dict[str, Any]:
        """The output of a batch. ``collected``: a name, the batch's predictions, and the function that scores them all."""
        output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        return output if collected is None else {**output, "_collected": collected}

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss in bits (per window, per word, ...) and, on whole validation sets, the task's scores."""
        loss = sum(output.get("loss", 0) for output in logging_outputs)
        sample_size = sum(output.get("sample_size", 0) for output in logging_outputs)
        metrics.log_scalar("loss", mean_over(loss, sample_size) / math.log(2), sample_size, round=3)
        for output in logging_outputs:
            if "_collected" in output:
                metrics.log_collected(*output["_collected"])

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """No: in evaluation they hold predictions."""
        return False
