"""Old checkpoint layouts brought to today's, step by step in the order in which the format changed.

A file of today passes one look at its keys. The options of old files (``args``) are upgraded by
`fairseq.dataclass.state.config_from_state`, the parameter names by the model.
"""

from __future__ import annotations

from typing import Any

DEFAULT_CRITERION = "CrossEntropyCriterion"  # of files too old to say
DEFAULT_OPTIMIZER = "FairseqNAG"
FROM_THE_TOP = ("epoch", "batch_offset", "val_loss")  # once top-level keys, now in extra_state
ENTRY_KEYS = ("optimizer_name", "lr_scheduler_state", "num_updates")


def upgrade_state(state: dict[str, Any]) -> dict[str, Any]:
    """Upgrade ``state`` in place and return it.

    A file that never had optimizer or training state (the published models) gets an empty history and position: the
    original could not read it.
    """
    if not _is_current(state):
        _add_history(state)
        _collect_extra_state(state)
        _move_optimizer_state(state)
        for entry in state["optimizer_history"]:
            _complete_entry(entry)
        _add_train_iterator(state["extra_state"])
    _start_epochs_at_one(state)
    return state


def _is_current(state: dict[str, Any]) -> bool:
    history = state.get("optimizer_history")
    extra = state.get("extra_state")
    return (
        isinstance(history, list)
        and len(history) > 0
        and all(key in history[-1] for key in ENTRY_KEYS)
        and "optimizer" not in history[-1]
        and isinstance(extra, dict)
        and "train_iterator" in extra
    )


def _add_history(state: dict[str, Any]) -> None:
    """2017: one optimizer state and ``best_loss`` at the top."""
    if not state.get("optimizer_history"):
        entry = {"criterion_name": DEFAULT_CRITERION}
        if "best_loss" in state:
            entry["best_loss"] = state.pop("best_loss")
        state["optimizer_history"] = [entry]
        if "optimizer" in state:
            state["last_optimizer_state"] = state.pop("optimizer")


def _collect_extra_state(state: dict[str, Any]) -> None:
    if not isinstance(state.get("extra_state"), dict):
        state["extra_state"] = {key: state.pop(key) for key in FROM_THE_TOP if key in state}


def _move_optimizer_state(state: dict[str, Any]) -> None:
    """Once every entry of the history held its optimizer; only the last one is of use."""
    history = state["optimizer_history"]
    if "optimizer" in history[-1]:
        state["last_optimizer_state"] = history[-1]["optimizer"]
    for entry in history:
        entry.pop("optimizer", None)


def _complete_entry(entry: dict[str, Any]) -> None:
    entry.setdefault("criterion_name", DEFAULT_CRITERION)
    entry.setdefault("optimizer_name", DEFAULT_OPTIMIZER)
    if "lr_scheduler_state" not in entry:
        entry["lr_scheduler_state"] = {"best": entry.pop("best_loss", None)}
    entry.setdefault("num_updates", 0)


def _add_train_iterator(extra: dict[str, Any]) -> None:
    if extra.get("train_iterator") is None:
        extra["train_iterator"] = {
            "epoch": extra.get("epoch", 0),
            "iterations_in_epoch": extra.get("batch_offset", 0),
        }


def _start_epochs_at_one(state: dict[str, Any]) -> None:
    """Files with an ``args`` Namespace count epochs from 0 where nothing was trained yet."""
    if state.get("args") is not None:
        iterator = state["extra_state"]["train_iterator"]
        iterator["epoch"] = max(iterator.get("epoch", 1), 1)
