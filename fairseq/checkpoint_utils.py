"""Old path of reading and writing checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq.checkpoint.naming import checkpoint_paths
from fairseq.checkpoint.reader import (
    load_checkpoint_to_cpu,
    load_ema_from_checkpoint,
    load_pretrained_component_from_model,
    save_ema_as_checkpoint,
    torch_persistent_save,
)
from fairseq.checkpoint.store import verify_checkpoint_directory
from fairseq.models.loading import load_model_ensemble, load_model_ensemble_and_task
from fairseq.models.pruning import prune_layers as prune_state_dict
from fairseq.training import state
from fairseq.training.restore import load_checkpoint

__all__ = [
    "checkpoint_paths",
    "load_checkpoint",
    "load_checkpoint_to_cpu",
    "load_ema_from_checkpoint",
    "load_model_ensemble",
    "load_model_ensemble_and_task",
    "load_pretrained_component_from_model",
    "prune_state_dict",
    "save_checkpoint",
    "save_ema_as_checkpoint",
    "torch_persistent_save",
    "verify_checkpoint_directory",
]


def save_checkpoint(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float | None) -> Path | None:
    """Write the files that are due now; ``cfg`` is the trainer's own ``checkpoint`` section, given for old callers."""
    return state.save(trainer, epoch_itr, val_loss)
