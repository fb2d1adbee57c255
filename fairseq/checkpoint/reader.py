"""Checkpoints as the rest of the program reads them: loaded safely, brought to today's layout, averaged on request.

Old layouts are upgraded step by step in the order in which the format changed; a file of today passes one look at its
keys. The options of old files (``args``) are upgraded by `fairseq.dataclass.state.config_from_state`, the parameter
names by the model.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.contents import check_contents
from fairseq.checkpoint.safe_load import load, resolve_references
from fairseq.checkpoint.shard_reader import WHOLE, ShardReader, file_of, fill
from fairseq.checkpoint.stored_paths import given_names, relocate
from fairseq.dataclass.state import config_from_state
from fairseq.errors import CheckpointError
from fairseq.tree import HALF

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


def load_checked(
    path: str | os.PathLike[str], mmap: bool = False, shards: ShardReader | None = WHOLE
) -> dict[str, Any]:
    """The state in ``path`` as it was stored, its values of the kinds that they should be. Raises CheckpointError.

    ``shards``: how to read tensors that were spread over several processes; with None they stay empty.
    """
    path = file_of(os.fspath(path))
    state = load(path, mmap=mmap)
    if "shard_metadata" in state:
        raise CheckpointError(
            f"{path} is one of several parts that fairscale wrote: put them together with the program that wrote them"
        )
    if not isinstance(state.get("model"), Mapping):
        keys = ", ".join(map(repr, list(state)[:3])) or "nothing"
        raise CheckpointError(f"{path} is not a checkpoint of fairseq: it holds {keys}, ... but no 'model'")
    check_contents(state, path)
    return fill(state, path, shards)


def read(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    mmap: bool = False,
    with_config: bool = True,
    shards: ShardReader | None = WHOLE,
) -> dict[str, Any]:
    """The upgraded state in ``path``, on the CPU; ``state["cfg"]`` is a DictConfig of our sections.

    ``overrides`` replace settings of the stored configuration; files that it names are looked for
    (`fairseq.checkpoint.stored_paths`). ``mmap`` leaves the tensors in the file until they are
    used: for queries, not for resuming a run. Without ``with_config`` the configuration is left as it was stored.
    A file that holds none has ``cfg`` None. For ``shards`` see `load_checked`. Raises CheckpointError.
    """
    state = upgrade_state(load_checked(path, mmap, shards))
    if with_config:
        stored = state.get("cfg")
        stored = state.get("args") if stored is None else stored
        if stored is not None:
            stored = config_from_state(resolve_references(stored, os.fspath(path)), dict(overrides or {}))
            relocate(stored, path, given_names(overrides or {}))
        state["cfg"] = stored
    return state


# -- functions of the old `fairseq.compat.utils` ------------------------------------------------------------------


def load_checkpoint_to_cpu(
    path: str, arg_overrides: Mapping[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """`read` under its old name."""
    return read(path, arg_overrides)


def load_ema_from_checkpoint(fpath: str) -> dict[str, Any]:
    """The stored state with the averaged weights as its ``model`` (half precision widened to float32)."""
    state = load_checked(fpath)
    ema = (state.get("extra_state") or {}).get("ema")
    if not ema:
        raise CheckpointError(f"checkpoint {fpath} has no averaged weights; train with store_ema to get them")
    state["model"] = OrderedDict(
        (key, value.float() if value.dtype in HALF else value.clone()) for key, value in ema.items()
    )
    return state


def save_ema_as_checkpoint(src_path: str, dst_path: str) -> None:
    """Write the averaged weights of ``src_path`` as the model of the checkpoint ``dst_path``."""
    atomic_save(load_ema_from_checkpoint(src_path), dst_path)


def load_pretrained_component_from_model(component: Any, checkpoint: str, strict: bool = True) -> Any:
    """Load ``component`` (an encoder) from the keys ``encoder.*`` of a whole model's checkpoint; returns it."""
    kinds = {base.__name__ for base in type(component).__mro__}
    prefix = "encoder." if "FairseqEncoder" in kinds else "decoder." if "FairseqDecoder" in kinds else None
    if prefix is None:
        raise ValueError(
            f"component to load must be a FairseqEncoder or FairseqDecoder, but is {type(component).__name__} instead"
        )
    weights = read(checkpoint, with_config=False)["model"]
    component.load_state_dict(
        OrderedDict((key[len(prefix) :], value) for key, value in weights.items() if key.startswith(prefix)),
        strict=strict,
    )
    return component


class DifferentParametersError(CheckpointError, KeyError):
    """Checkpoints of different models."""


def average_checkpoints(inputs: Sequence[str]) -> dict[str, Any]:
    """The first file's state with ``model`` replaced by the mean over all files.

    Half precision is widened to float32; integers are divided rounding down, as in the original. Tensors that are
    tied in the first file stay tied. Raises CheckpointError for no files, or a file without ``model``, and
    DifferentParametersError (a KeyError) when parameter names differ.
    """
    if not inputs:
        raise CheckpointError("no checkpoints to average; name at least one")
    result: dict[str, Any] = {}
    sums: OrderedDict[str, torch.Tensor] = OrderedDict()
    tied: dict[str, str] = {}  # name -> the first name of the same tensor
    for path in inputs:
        state = load_checked(path)
        weights = state["model"]
        if not result:
            result, tied = state, _ties(weights)
        elif list(weights) != list(sums):
            odd = sorted(set(weights) ^ set(sums)) or list(weights)
            raise DifferentParametersError(
                f"{path} has other parameters than {inputs[0]}, for example {odd[0]}; average checkpoints of one model"
            )
        for name, value in weights.items():
            value = value.float() if value.dtype in HALF else value
            if name not in sums:
                sums[name] = value.clone() if tied[name] == name else sums[tied[name]]
            elif tied[name] == name:
                sums[name] += value
    for name, total in sums.items():
        if tied[name] == name:
            divide = total.div_ if total.is_floating_point() else total.floor_divide_
            divide(len(inputs))
    result["model"] = sums
    return result


def _ties(weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Each name's first name of the same memory; every tensor of its own stands for itself."""
    first: dict[tuple, str] = {}
    ties = {}
    for name, value in weights.items():
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        ties[name] = first.setdefault(key, name)
    return ties
