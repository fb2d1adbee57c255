"""The configuration tree: fixed sections, and one node per pluggable component chosen by its ``_name``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from fairseq.dataclass.base import II, MISSING, FairseqDataclass, option
from fairseq.dataclass.distributed_section import DistributedTrainingConfig
from fairseq.dataclass.sections import (
    CheckpointConfig,
    CommonConfig,
    CommonEvalConfig,
    DatasetConfig,
    EMAConfig,
    OptimizationConfig,
)
from fairseq.errors import OutOfScopeError
from fairseq.scope import HERE

__all__ = [
    "II",
    "MISSING",
    "SECTIONS",
    "CheckpointConfig",
    "CommonConfig",
    "CommonEvalConfig",
    "DatasetConfig",
    "DistributedTrainingConfig",
    "EMAConfig",
    "FairseqConfig",
    "FairseqDataclass",
    "OptimizationConfig",
]

_ABSENT = ("GenerationConfig", "EvalLMConfig", "InteractiveConfig", "FairseqBMUFConfig")


def __getattr__(name: str) -> NoReturn:
    """Old section classes that are not here: one sentence for whoever imports them."""
    if name in _ABSENT:
        raise OutOfScopeError(f"{__name__}.{name} is out of scope: {HERE}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


SECTIONS: dict[str, type[FairseqDataclass]] = {
    "common": CommonConfig,
    "common_eval": CommonEvalConfig,
    "distributed_training": DistributedTrainingConfig,
    "dataset": DatasetConfig,
    "optimization": OptimizationConfig,
    "checkpoint": CheckpointConfig,
    "ema": EMAConfig,
}


@dataclass(kw_only=True)
class FairseqConfig(FairseqDataclass):
    """The whole configuration of a run."""

    common: CommonConfig = field(default_factory=CommonConfig)
    common_eval: CommonEvalConfig = field(default_factory=CommonEvalConfig)
    distributed_training: DistributedTrainingConfig = field(default_factory=DistributedTrainingConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    model: Any = option(MISSING, "the model: its architecture as _name, and settings")
    task: Any = option(None, "the task")
    criterion: Any = option(None, "the loss")
    optimizer: Any = option(None, "the optimizer")
    lr_scheduler: Any = option(None, "the learning-rate schedule")
    scoring: Any = option(None, "out of scope: generation scores")
    bpe: Any = option(None, "the byte-pair encoding of raw text")
    tokenizer: Any = option(None, "the tokenizer of raw text")
    ema: EMAConfig = field(default_factory=EMAConfig)
