"""Checkpoints as the rest of the program reads them: loaded safely, upgraded, with a typed configuration."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.references import resolve_references
from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.upgrade import upgrade_state
from fairseq.dataclass.state import config_from_state
from fairseq.errors import CheckpointError
from fairseq.tree import HALF


def read(
    path: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    mmap: bool = False,
    with_config: bool = True,
) -> dict[str, Any]:
    """The upgraded state in ``path``, on the CPU; ``state["cfg"]`` is a DictConfig of our sections.

    ``overrides`` replace settings of the stored configuration. ``mmap`` leaves the tensors in the file until they are
    used: for queries, not for resuming a run. Without ``with_config`` the configuration is left as it was stored.
    A file that holds none has ``cfg`` None. Raises CheckpointError.
    """
    state = load(path, mmap=mmap)
    if not isinstance(state.get("model"), Mapping):
        keys = ", ".join(map(repr, list(state)[:3])) or "nothing"
        raise CheckpointError(f"{os.fspath(path)} is not a checkpoint of fairseq: it holds {keys}, ... but no 'model'")
    try:
        upgrade_state(state)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {os.fspath(path)} is malformed: {error!r}") from error
    if with_config:
        stored = state.get("cfg")
        stored = state.get("args") if stored is None else stored
        if stored is not None:
            stored = config_from_state(resolve_references(stored, os.fspath(path)), dict(overrides or {}))
        state["cfg"] = stored
    return state


# -- functions of the old `fairseq.checkpoint_utils` ------------------------------------------------------------------


def load_checkpoint_to_cpu(
    path: str, arg_overrides: Mapping[str, Any] | None = None, load_on_all_ranks: bool = False
) -> dict[str, Any]:
    """`read` under its old name."""
    return read(path, arg_overrides)


def torch_persistent_save(obj: Any, filename: Any, async_write: bool = False) -> None:
    """Save atomically to the path ``filename`` (``async_write`` is done at once), or plainly to an open file."""
    if isinstance(filename, (str, os.PathLike)):
        atomic_save(obj, filename)
    else:
        torch.save(obj, filename)


def load_ema_from_checkpoint(fpath: str) -> dict[str, Any]:
    """The stored state with the averaged weights as its ``model`` (half precision widened to float32)."""
    state = load(fpath)
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
