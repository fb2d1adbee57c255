"""Which old checkpoints are deleted after a save.

The rules are the original's, with two repairs: what was just written, and what a symbolic link named best or last points to,
is never deleted; and as many files as asked for are kept when one of those is not among the first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

import fairseq.checkpoint.naming as naming

logger = logging.getLogger(__name__)


def prune(cfg: Any, suffix: str, end_of_epoch: bool, written: Iterable[str]) -> None:
    """Delete what the ``keep_*`` options of the checkpoint section ``cfg`` no longer keep; ``written``: paths to spare."""
    directory = cfg.save_dir
    protected = {os.path.realpath(path) for path in written}
    for name in (naming.best_name(suffix), naming.last_name(suffix)):
        protected.add(os.path.realpath(os.path.join(directory, name)))

    if not end_of_epoch and cfg.keep_interval_updates > 0:
        found = naming.checkpoint_paths(directory, naming.update_pattern(suffix), keep_match=True)
        every = cfg.keep_interval_updates_pattern
        _keep_first(
            [path for path, updates in found if every <= 0 or updates % every != 0],
            cfg.keep_interval_updates,
            protected,
        )
    if cfg.keep_last_epochs > 0:
        _keep_first(naming.checkpoint_paths(directory, naming.epoch_pattern(suffix)), cfg.keep_last_epochs, protected)
    if cfg.keep_best_checkpoints > 0:
        _keep_first(kept_best(cfg, suffix), cfg.keep_best_checkpoints, protected)


def kept_best(cfg: Any, suffix: str) -> list[str]:
    """The ``checkpoint.best_*`` files, best first."""
    found = naming.checkpoint_paths(cfg.save_dir, naming.kept_best_pattern(cfg.best_checkpoint_metric, suffix))
    return found if cfg.maximize_best_checkpoint_metric else found[::-1]


def _keep_first(paths: list[str], count: int, protected: set[str]) -> None:
    """Delete all but ``count`` of ``paths``: the protected ones, then the first."""
    spare = [path for path in paths if os.path.realpath(path) not in protected]
    room = max(count - (len(paths) - len(spare)), 0)
    for path in spare[room:]:
        try:
            os.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:  # not worth the end of a run
            logger.warning("cannot delete the old checkpoint %s: %s", path, error.strerror)
