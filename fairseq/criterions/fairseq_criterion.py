"""The base classes of losses, under their old import path."""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.logging import metrics

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


class LegacyFairseqCriterion(FairseqCriterion):
    """The old constructor, ``(args, task)``."""

    def __init__(self, args: Any, task: Any) -> None:
        super().__init__(task=task)
        self.args = args
        logger.warning("%s uses the old interface: derive from FairseqCriterion instead", type(self).__name__)

    @classmethod
    def build_criterion(cls, args: Any, task: Any) -> FairseqCriterion:
        return cls(args, task)
