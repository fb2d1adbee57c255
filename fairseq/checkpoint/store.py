"""The directory of a run: which files a save writes, under which names and in which order, and which ones go.

The first applicable name is written, the others are copies of it, ``checkpoint_last.pt`` is last: whoever finds it
finds the rest. Every file appears at once and in full (`fairseq.checkpoint.atomic`).

Which old files go follows the original's rules, with two repairs: what was just written, and what a symbolic link
named best or last points to, is never deleted; and as many files as asked for are kept when one of those is not among
the first.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.checkpoint.atomic import atomic_copy, atomic_save, remove_leftovers
from fairseq.checkpoint.schema import Snapshots, portable
from fairseq.checkpoint.sharded import Writers, remove_unnamed, write_shards
from fairseq.errors import CheckpointError
from fairseq.rng import legacy_generator

logger = logging.getLogger(__name__)


def last_name(suffix: str = "") -> str:
    return f"checkpoint_last{suffix}.pt"


def best_name(suffix: str = "") -> str:
    return f"checkpoint_best{suffix}.pt"


def epoch_name(epoch: int, suffix: str = "") -> str:
    return f"checkpoint{epoch}{suffix}.pt"


def update_name(epoch: int, updates: int, suffix: str = "") -> str:
    return f"checkpoint_{epoch}_{updates}{suffix}.pt"


def epoch_pattern(suffix: str = "") -> str:
    """Matches `epoch_name`; group 1 is the epoch."""
    return rf"checkpoint(\d+){re.escape(suffix)}\.pt"


def update_pattern(suffix: str = "") -> str:
    """Matches `update_name`; group 1 is the number of updates."""
    return rf"checkpoint_\d+_(\d+){re.escape(suffix)}\.pt"


def kept_best_pattern(metric: str, suffix: str = "") -> str:
    """Matches `CheckpointStore.kept_best_name`; group 1 is the value of ``metric`` with the tie-breaking digit appended."""
    return rf"checkpoint\.best_{re.escape(metric)}_(-?\d+\.\d{{3}}\d+){re.escape(suffix)}\.pt"


def kept_value(path: str, metric: str) -> float:
    """The value in the name of one of the best files by ``metric``, to three decimals."""
    text = os.path.basename(path).removeprefix(f"checkpoint.best_{metric}_")
    return float(re.match(r"-?\d+\.\d{3}", text).group())  # type: ignore[union-attr]


def checkpoint_paths(path: str, pattern: str = r"checkpoint(\d+)\.pt", keep_match: bool = False) -> list:
    """Files in directory ``path`` whose whole name matches ``pattern``, by the number in its first group, descending.

    With ``keep_match``: (file, number) pairs.
    """
    regex = re.compile(pattern)
    entries = []
    for i, name in enumerate(sorted(os.listdir(path)) if os.path.isdir(path) else []):
        match = regex.fullmatch(name)
        if match is not None:
            entries.append((float(match.group(1)) if match.groups() else float(i), name))
    entries.sort(reverse=True)
    return [(os.path.join(path, name), number) if keep_match else os.path.join(path, name) for number, name in entries]


def resumable(cfg: Any) -> list[str]:
    """The checkpoints that a run with the checkpoint section ``cfg`` may go on from, the newest one first.

    With ``resume`` auto these are all that are there, so that there is one when the newest is damaged, and when a run was
    killed between writing a checkpoint and copying it to ``checkpoint_last``. None where that is not to be written.
    """
    # A plugin's section may have only what the original asks of one.
    suffix = getattr(cfg, "checkpoint_suffix", "")
    last = os.path.join(cfg.save_dir, last_name(suffix))
    never_last = getattr(cfg, "no_last_checkpoints", False) and not os.path.exists(last)
    if getattr(cfg, "resume", "last") == "last" or never_last:
        return [last] if os.path.exists(last) else []
    patterns = (
        re.escape(last_name(suffix)),
        re.escape(best_name(suffix)),
        update_pattern(suffix),
        epoch_pattern(suffix),
        kept_best_pattern(getattr(cfg, "best_checkpoint_metric", "loss"), suffix),
    )
    found = [path for pattern in patterns for path in checkpoint_paths(cfg.save_dir, pattern)]
    return sorted(found, key=os.path.getmtime, reverse=True)  # equal times: the last one before the others


def prune(cfg: Any, end_of_epoch: bool, written: Iterable[str]) -> None:
    """Delete what the ``keep_*`` options of the checkpoint section ``cfg`` no longer keep; ``written``: paths to spare."""
    directory, suffix = cfg.save_dir, cfg.checkpoint_suffix
    pointers = (os.path.join(directory, name) for name in (best_name(suffix), last_name(suffix)))
    protected = {os.path.realpath(path) for path in (*written, *pointers)}
    if not end_of_epoch and cfg.keep_interval_updates > 0:
        found = checkpoint_paths(directory, update_pattern(suffix), keep_match=True)
        every = cfg.keep_interval_updates_pattern
        _keep_first(
            [path for path, updates in found if every <= 0 or updates % every != 0],
            cfg.keep_interval_updates,
            protected,
        )
    if cfg.keep_last_epochs > 0:
        _keep_first(checkpoint_paths(directory, epoch_pattern(suffix)), cfg.keep_last_epochs, protected)
    if cfg.keep_best_checkpoints > 0:
        _keep_first(kept_best(cfg), cfg.keep_best_checkpoints, protected)
    remove_unnamed(directory)


def kept_best(cfg: Any) -> list[str]:
    """The ``checkpoint.best_*`` files, best first."""
    found = checkpoint_paths(cfg.save_dir, kept_best_pattern(cfg.best_checkpoint_metric, cfg.checkpoint_suffix))
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


class Save(NamedTuple):
    """When something is saved."""

    epoch: int
    updates: int
    end_of_epoch: bool
    val_loss: float | None
    forced: bool = False


class CheckpointStore:
    """Writes the checkpoints of one run.

    ``cfg`` is the ``checkpoint`` section. With ``writers`` every process writes what it has of the tensors that are spread
    over them; all of them then call `save`. `best` is the best validation value so far; on resuming, the trainer sets it from
    the checkpoint. It changes only in `save`, with ``no_save`` too: a validation without a save does not count, as in the
    original.
    """

    def __init__(self, cfg: Any, writers: Writers | None = None) -> None:
        self.cfg = cfg
        self.writers = writers
        self.best: float | None = None
        self._writing: Future[None] | None = None
        self._snapshots = Snapshots()

    # -- what is best ---------------------------------------------------------------------------------------------

    def is_better(self, value: float, than: float) -> bool:
        """Ties count."""
        return value >= than if self.cfg.maximize_best_checkpoint_metric else value <= than

    def note(self, val_loss: float | None) -> None:
        """As `save`, for a process that does not write: it has the same best value."""
        self.best = self._best_with(val_loss)

    def _best_with(self, val_loss: float | None) -> float | None:
        if val_loss is None or math.isnan(val_loss):
            return self.best
        return val_loss if self.best is None or self.is_better(val_loss, self.best) else self.best

    # -- what is written ------------------------------------------------------------------------------------------

    def names(
        self, epoch: int, updates: int, end_of_epoch: bool, val_loss: float | None, forced: bool = False
    ) -> list[str]:
        """File names that a save now would write, in order; one at least if ``forced``, but none with ``no_save``."""
        cfg, suffix = self.cfg, self.cfg.checkpoint_suffix
        if cfg.no_save:
            return []
        names = []
        if end_of_epoch and not cfg.no_epoch_checkpoints and epoch % cfg.save_interval == 0:
            names.append(epoch_name(epoch, suffix))
        if not end_of_epoch and cfg.save_interval_updates > 0 and updates % cfg.save_interval_updates == 0:
            names.append(update_name(epoch, updates, suffix))
        if val_loss is not None and not math.isnan(val_loss):
            best = self._best_with(val_loss)
            if best is None or self.is_better(val_loss, best):
                names.append(best_name(suffix))
            if cfg.keep_best_checkpoints > 0 and self._is_among_the_best(val_loss):
                names.append(self.kept_best_name(epoch, updates, val_loss))
        if not cfg.no_last_checkpoints:
            names.append(last_name(suffix))
        return names or ([update_name(epoch, updates, suffix)] if forced else [])

    def writes(self, save: Save) -> bool:
        """Whether ``save`` would write something."""
        self.wait()
        return bool(self.names(*save))

    def _is_among_the_best(self, val_loss: float) -> bool:
        """Room for another, or it ties or beats the worst (the original did not fill the room with worse ones)."""
        kept = kept_best(self.cfg)
        if len(kept) < self.cfg.keep_best_checkpoints:
            return True
        worst = kept_value(kept[-1], self.cfg.best_checkpoint_metric)
        return self.is_better(float(f"{val_loss:.3f}"), worst)

    def kept_best_name(self, epoch: int, updates: int, value: float) -> str:
        """Name among the best files: the metric's value with three decimals and one digit that breaks ties.

        The digit is the original's seeded draw; if that name is taken, the next free digit, so that no kept file is lost.
        """
        cfg = self.cfg
        draw = int(legacy_generator(epoch, updates, hash(float(value))).randint(0, cfg.keep_best_checkpoints))
        start, end = f"checkpoint.best_{cfg.best_checkpoint_metric}_{value:.3f}", f"{cfg.checkpoint_suffix}.pt"
        names = [f"{start}{(draw + i) % 10}{end}" for i in range(10)]
        taken = {os.path.basename(path) for path in kept_best(cfg)}
        return next((name for name in names if name not in taken), names[0])

    def save(
        self,
        state: dict[str, Any] | Callable[[], dict[str, Any]],
        epoch: int,
        updates: int,
        end_of_epoch: bool,
        val_loss: float | None,
        forced: bool = False,
    ) -> Path | None:
        """Write a checkpoint under all names that apply, then prune; returns the first file, or None if none applies.

        ``state`` (or the function that makes it, called only when something is written) is what
        `fairseq.checkpoint.schema.build_state` returns; its ``extra_state["best"]`` is set here. With
        ``write_checkpoints_asynchronously`` the tensors are copied now and written by a background thread, or by this one
        where there is no memory for a copy; an error of an earlier write is raised first. Raises CheckpointError; files
        from before are then untouched.
        """
        self.wait()  # before looking at the directory
        self.best = self._best_with(val_loss)
        names = self.names(epoch, updates, end_of_epoch, val_loss, forced)
        if self.writers is not None:
            names = self.writers.of_first(names)
        if not names:
            return None
        if callable(state):
            state = state()
        if self.best is not None and "extra_state" in state:
            state["extra_state"]["best"] = self.best
        paths = [os.path.join(self.cfg.save_dir, name) for name in names]
        if self.writers is not None:
            state = write_shards(portable(state), paths[0], self.writers)
            if self.writers.rank > 0:
                return None
        done = f"epoch {epoch} @ {updates} updates, score {val_loss}"
        snapshot = self._snapshot(state) if self.cfg.write_checkpoints_asynchronously else None
        if snapshot is None:
            self._write(portable(state), paths, end_of_epoch, done)
        else:
            # A program that ends waits for the threads of its executors.
            executor = ThreadPoolExecutor(1, "checkpoint-writer")
            self._writing = executor.submit(self._write_or_log, snapshot, paths, end_of_epoch, done)
            executor.shutdown(wait=False)
        return Path(paths[0])

    def _snapshot(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """A copy that the run does not change, or None for want of memory."""
        try:
            return self._snapshots.take(state)
        except (MemoryError, RuntimeError) as error:  # torch's allocators raise the latter
            reason = str(error).strip().partition("\n")[0]
            logger.warning("no memory to copy the checkpoint (%s): it is written before the training goes on", reason)
            return None

    def _write_or_log(self, *arguments: Any) -> None:
        try:
            self._snapshots.wait()
            self._write(*arguments)
        except BaseException as error:
            logger.error("%s", error)  # `wait` may never be called
            raise

    def _write(self, state: dict[str, Any], paths: list[str], end_of_epoch: bool, done: str) -> None:
        start = time.perf_counter()
        os.makedirs(self.cfg.save_dir, exist_ok=True)
        atomic_save(state, paths[0])
        for path in paths[1:]:
            atomic_copy(paths[0], path)
        seconds = time.perf_counter() - start
        logger.info("Saved checkpoint %s (%s) (writing took %s seconds)", paths[0], done, round(seconds, 3))
        prune(self.cfg, end_of_epoch, paths)

    def save_crash(self, state: dict[str, Any]) -> None:
        """Write ``crash.pt``. A failure is logged only: another error is on its way already."""
        try:
            os.makedirs(self.cfg.save_dir, exist_ok=True)
            atomic_save(portable(state), os.path.join(self.cfg.save_dir, "crash.pt"))
        except (CheckpointError, OSError) as error:
            logger.warning("%s", error)

    # -- the directory --------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until everything is written; raises the error of a background write. Call it at the end of the run."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def verify_directory(self) -> None:
        """Before the first update: make sure that the directory can be written. With ``no_save`` it may be missing."""
        if not self.cfg.no_save:
            verify_checkpoint_directory(self.cfg.save_dir)

    def clear_directory(self) -> None:
        """Before the first update, and while no other run has the directory: remove what killed ones left."""
        if not self.cfg.no_save:
            remove_leftovers(self.cfg.save_dir)


def verify_checkpoint_directory(save_dir: str) -> None:
    """Create ``save_dir`` where missing. Raises CheckpointError when it cannot be written."""
    try:
        os.makedirs(save_dir, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise CheckpointError(
            f"cannot write to the checkpoint directory {save_dir}: {error.strerror}; choose another save_dir"
        ) from error
