"""The state of a run as named parts.

A part gives its state and takes it back. All parts are collected before anything is written, so that processes that share
a model may collect together before one of them writes. `from_checkpoint`, and `build_state` in `fairseq.checkpoint.schema`,
know the place of each part in the file; what a part holds is its own matter.

No part holds the random streams: order and masks follow from the seed and the epoch, dropout from the seed and the
number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

from fairseq.errors import CheckpointError
from fairseq.optim.precision import accepts_state_of


class StatefulPart(NamedTuple):
    """One named piece of a run's state."""

    name: str
    state: Callable[[], Any]
    load: Callable[[Any], None]


class Resets(NamedTuple):
    """What a run does not take over from the checkpoint that it starts from (``--reset-optimizer`` and so on)."""

    optimizer: bool = False
    lr_scheduler: bool = False
    meters: bool = False
    dataloader: bool = False


@dataclass
class EarlyStop:
    """Counts validations without a strict improvement (``--patience``)."""

    best: float | None = None
    runs: int = 0

    def update(self, value: float, maximize: bool) -> int:
        """The number of validations in a row, this one included, that did not improve (NaN is no improvement)."""
        if not math.isnan(value) and (self.best is None or (value > self.best if maximize else value < self.best)):
            self.best, self.runs = value, 0
        else:
            self.runs += 1
        return self.runs

    def state_dict(self) -> dict[str, Any] | None:
        """None before the first validation."""
        return asdict(self) if self.runs or self.best is not None else None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.runs = astuple(EarlyStop(**state))


def from_checkpoint(checkpoint: Mapping[str, Any], resets: Resets) -> dict[str, Any]:
    """The states of the parts that a run takes over from ``checkpoint``; a part that is not in it stays as it is."""
    extra = checkpoint["extra_state"]
    states = {
        "model": checkpoint["model"],
        "criterion": checkpoint.get("criterion"),
        "optimizer_history": checkpoint["optimizer_history"],
        "ema": extra,
        "task": checkpoint.get("task_state") or {},
        "training_time": extra.get("previous_training_time", 0.0),
    }
    if checkpoint.get("last_optimizer_state") is not None and not resets.optimizer:
        last = checkpoint["optimizer_history"][-1]
        states["classes"] = {key: last[key] for key in ("criterion_name", "optimizer_name")}
        states["optimizer"] = checkpoint["last_optimizer_state"]
        states["num_updates"] = last["num_updates"]
        if not resets.lr_scheduler:
            states["lr_scheduler_state"] = last["lr_scheduler_state"]
    if not resets.meters:
        if not resets.optimizer:
            states["early_stop"], states["best"] = extra.get("early_stop"), extra.get("best")
        if extra["train_iterator"]["iterations_in_epoch"] > 0:
            states["meters"] = extra.get("metrics")
    return {name: state for name, state in states.items() if state is not None}


def count_batches(position: dict[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Complete ``position`` in the data by the batches that all processes have read.

    Files without (those of a single process, and the original's) tell how many each process has read; how many
    processes there were is in the stored configuration.
    """
    if "batches_in_epoch" not in position:
        position["batches_in_epoch"] = position["iterations_in_epoch"] * _stored_world_size(checkpoint)


def _stored_world_size(checkpoint: Mapping[str, Any]) -> int:
    cfg, args = checkpoint.get("cfg"), checkpoint.get("args")
    section = cfg.get("distributed_training") if isinstance(cfg, Mapping) else args
    found = section.get(_SIZE) if isinstance(section, Mapping) else getattr(section, _SIZE, 1)
    return found if isinstance(found, int) and found > 1 else 1


_SIZE = "distributed_world_size"


def class_names(criterion: Any, optimizer: Any) -> dict[str, str]:
    """The classes of a run that a checkpoint names."""
    return {"criterion_name": type(criterion).__name__, "optimizer_name": type(optimizer).__name__}


def check_class_names(criterion: Any, optimizer: Any, source: str, saved: Mapping[str, str]) -> None:
    """Raise CheckpointError if the checkpoint ``source`` names other classes."""
    own = class_names(criterion, optimizer)
    check_same(source, "criterion", saved["criterion_name"], own["criterion_name"])
    if not accepts_state_of(optimizer, saved["optimizer_name"]):
        check_same(source, "optimizer", saved["optimizer_name"], own["optimizer_name"])


def check_same(source: str, what: str, saved: str, own: str) -> None:
    """Raise CheckpointError if the class ``saved`` in ``source`` is not this run's."""
    if saved != own:
        raise CheckpointError(
            f"{source} was trained with the {what} {saved}, but this run uses {own}; use the same one, or give "
            "--reset-optimizer to start with a fresh optimizer"
        )
