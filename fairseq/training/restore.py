"""Which checkpoint a run starts from, and what it takes over from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairseq.dataclass.values import literal_dict
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import PathManager
from fairseq.logging.setup import TRAIN_LOGGER

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import CheckpointConfig
    from fairseq.training.trainer import Trainer

logger = logging.getLogger(TRAIN_LOGGER)

LAST = "checkpoint_last.pt"


def load_checkpoint(
    cfg: CheckpointConfig, trainer: Trainer, **iterator_args: Any
) -> tuple[dict[str, Any] | None, EpochBatchIterator]:
    """Restore ``trainer`` as the ``checkpoint`` section ``cfg`` says.

    Returns the checkpoint's ``extra_state`` (None without a checkpoint) and the iterator at the place where training
    goes on. ``iterator_args`` go to ``trainer.get_train_iterator``.
    """
    resets = {
        name: bool(getattr(cfg, f"reset_{name}")) for name in ("optimizer", "lr_scheduler", "meters", "dataloader")
    }
    if cfg.finetune_from_model is not None and any(resets.values()):
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer"
            " or reset_lr_scheduler or reset_meters or reset_dataloader"
        )
    path, finetune = _choose(cfg, trainer.checkpoint_suffix)
    if finetune:
        resets = dict.fromkeys(resets, True)
    extra_state = trainer.load_checkpoint(
        path,
        resets["optimizer"],
        resets["lr_scheduler"],
        literal_dict(cfg.optimizer_overrides, "--optimizer-overrides"),
        reset_meters=resets["meters"],
    )
    if extra_state is not None and not resets["optimizer"] and not resets["meters"]:
        best = extra_state.get("best")
        if best is not None:
            trainer.store.best = best
    if extra_state is None or resets["dataloader"]:
        return extra_state, trainer.get_train_iterator(epoch=1, load_dataset=True, **iterator_args)
    position = extra_state["train_iterator"]
    epoch_itr = trainer.get_train_iterator(epoch=position["epoch"], load_dataset=True, **iterator_args)
    epoch_itr.load_state_dict(position)
    return extra_state, epoch_itr


def _choose(cfg: CheckpointConfig, suffix: str) -> tuple[str, bool]:
    """The file to load, and whether it only gives the weights to start from."""
    if cfg.restore_file != LAST:
        if cfg.finetune_from_model:
            raise ConfigError(
                f"--finetune-from-model and --restore-file ({cfg.restore_file}) can not be specified together: keep one"
            )
        path = cfg.restore_file.replace(".pt", suffix + ".pt") if suffix else cfg.restore_file
        if not PathManager.exists(path):
            raise CheckpointError(
                f"--restore-file {path} does not exist; give the path of a checkpoint, or leave the option out to start "
                f"from {cfg.save_dir}/{LAST} when there is one and from scratch otherwise"
            )
        return path, False
    last = str(Path(cfg.save_dir) / f"checkpoint_last{suffix}.pt")
    if PathManager.exists(last):
        return last, False
    if cfg.continue_once is not None:
        if not PathManager.exists(cfg.continue_once):
            raise CheckpointError(f"--continue-once {cfg.continue_once} does not exist")
        return cfg.continue_once, False
    if cfg.finetune_from_model is not None:
        if not PathManager.exists(cfg.finetune_from_model):
            raise ConfigError(f"--finetune-from-model {cfg.finetune_from_model} does not exist")
        logger.info(
            "loading pretrained model from %s: optimizer, schedule, meters and data start anew", cfg.finetune_from_model
        )
        return cfg.finetune_from_model, True
    return last, False
