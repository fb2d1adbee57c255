"""A save that a kill cut short between its files is finished by the run that goes on from it.

Without that the best model would be missing under its name for good (the state that is there says that it has been stored),
and so would the last one of a run that has nothing left to do.
"""

from __future__ import annotations

import os
from typing import Any

from fairseq.checkpoint.atomic import atomic_copy
from fairseq.checkpoint.reader import read
from fairseq.checkpoint.shard_reader import COMPARED
from fairseq.checkpoint.store import CheckpointStore, best_name, kept_best, kept_value, last_name
from fairseq.errors import CheckpointError


def finish_save(store: CheckpointStore, path: str) -> None:
    """Copy ``path``, the newest file of the directory of ``store``, to the names that its save had not come to."""
    directory, suffix = store.cfg.save_dir, store.cfg.checkpoint_suffix
    if os.path.basename(path) == last_name(suffix):  # which is written last
        return
    try:
        state = read(path, mmap=True, with_config=False, shards=COMPARED)
    except CheckpointError:
        return  # whoever loads it says so
    extra, updates = state["extra_state"], state["optimizer_history"][-1]["num_updates"]
    value, position = extra.get("val_loss"), extra["train_iterator"]
    epoch = position["epoch"] - (
        position["iterations_in_epoch"] == 0
    )  # at its end the position is that of the next one
    for name in store.names(epoch, updates, True, value):
        if _is_due(store.cfg, name, path, value, extra.get("best")):
            atomic_copy(path, os.path.join(directory, name))


def _is_due(cfg: Any, name: str, path: str, value: float | None, best: float | None) -> bool:
    """Whether the save whose first file is ``path`` would have gone on to ``name``, and had not."""
    metric = cfg.best_checkpoint_metric
    if name == last_name(cfg.checkpoint_suffix) or (name == best_name(cfg.checkpoint_suffix) and value == best):
        found = [os.path.join(cfg.save_dir, name)]
    elif value is not None and name.startswith(f"checkpoint.best_{metric}_"):  # its last digit is any free one
        found = [kept for kept in kept_best(cfg) if kept_value(kept, metric) == float(f"{value:.3f}")]
    else:
        return False
    return not any(os.path.exists(file) and os.path.getmtime(file) >= os.path.getmtime(path) for file in found)
