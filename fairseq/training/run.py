"""A training run from the configuration, and the checkpoint that it starts from, to its last checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fairseq.checkpoint.store import last_name
from fairseq.data import indexed_dataset
from fairseq.dataclass.base import literal_dict
from fairseq.dataclass.state import changed_settings, config_to_state
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import PathManager
from fairseq.limits import too_large
from fairseq.logging import metrics
from fairseq.logging.setup import TRAIN_LOGGER, log_to_files
from fairseq.ops import library
from fairseq.optim import precision
from fairseq.tasks import setup_task
from fairseq.training.batches import check_sample_sizes, seed_run, subset_names
from fairseq.training.loop import train_epochs
from fairseq.training.run_state import Resets
from fairseq.training.trainer import Trainer

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
    from fairseq.tasks.fairseq_task import FairseqTask

logger = logging.getLogger(TRAIN_LOGGER)

_WORKER = 1 << 26  # bytes that a data worker needs at least


def train(cfg: FairseqConfig) -> float | None:
    """Run the training that ``cfg`` describes; returns the last validation value (None without validation)."""
    check(cfg)
    with precision.tf32(cfg.common.tf32):
        return _train(cfg)


def _train(cfg: FairseqConfig) -> float | None:
    metrics.reset()
    seed_run(cfg)
    log_to_files(logger, config_to_state(cfg))
    logger.info("settings: %s", " ".join(f"{key}={value}" for key, value in changed_settings(cfg).items()))

    task = setup_task(cfg.task, bpe=cfg.bpe)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    describe(task, model, criterion)
    load_validation_data(cfg, task)

    trainer = Trainer(cfg, task, model, criterion)
    trainer.store.verify_directory()
    logger.info("training on %s in %s precision", trainer.device, trainer.precision)
    if library.missing():  # pip shows no output of a build that succeeded, so the reader may not know
        logger.warning(
            "training is slower than it could be, compiled operators are missing: %s", library.why_unavailable()
        )
    logger.info(stop_rule(cfg))
    logger.info(
        "max tokens per device = %s and max sentences per device = %s", cfg.dataset.max_tokens, cfg.dataset.batch_size
    )
    _, epoch_itr = load_checkpoint(
        cfg.checkpoint, trainer, disable_iterator_cache=task.has_sharded_data(cfg.dataset.train_subset)
    )
    if cfg.optimization.max_update and trainer.get_num_updates() >= cfg.optimization.max_update:
        logger.info("nothing to do: %d updates are done already", trainer.get_num_updates())
        return None
    if not (cfg.dataset.disable_validation or cfg.dataset.skip_invalid_size_inputs_valid_test):
        for subset in subset_names(cfg):  # rather than at the first validation
            check_sample_sizes(task, model, subset)
    value = train_epochs(cfg, trainer, epoch_itr)
    trainer.store.wait()
    logger.info("done training in %.1f seconds", metrics.get_meter("default", "wall").elapsed_time)
    return value


def check(cfg: FairseqConfig) -> None:
    """Refuse settings that cannot work before anything is loaded."""
    data = cfg.dataset
    if data.max_tokens is None and data.batch_size is None:
        raise ConfigError(
            "the size of a batch is not given: pass --max-tokens (tokens per batch) or --batch-size (sentences per batch)"
        )
    for name in ("max_tokens", "batch_size", "max_tokens_valid", "batch_size_valid"):
        value = getattr(data, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, but is {value}")
    for section, name in (
        ("common", "log_interval"),
        ("dataset", "validate_interval"),
        ("checkpoint", "save_interval"),
    ):
        if getattr(getattr(cfg, section), name) == 0:
            raise ConfigError(f"{name} must not be 0: it counts the updates or epochs from one time to the next")
    workers = too_large(max(data.num_workers, 0) * _WORKER)
    if workers is not None:
        raise ConfigError(f"num_workers is {data.num_workers}: so many processes need {workers}")
    if cfg.ema.store_ema and cfg.ema.ema_update_freq < 1:
        raise ConfigError(f"ema_update_freq must be at least 1, but is {cfg.ema.ema_update_freq}")
    if data.max_valid_steps is not None and data.max_valid_steps < 0:
        raise ConfigError(f"max_valid_steps must not be negative, but is {data.max_valid_steps}")
    if any(frequency < 1 for frequency in cfg.optimization.update_freq) or not cfg.optimization.update_freq:
        raise ConfigError(f"update_freq must be at least 1, but is {list(cfg.optimization.update_freq)}")
    if cfg.optimization.batch_ramp_updates < 0:
        raise ConfigError(f"batch_ramp_updates must not be negative, but is {cfg.optimization.batch_ramp_updates}")
    if cfg.criterion is None:
        raise ConfigError("no criterion is given: pass --criterion, for example --criterion masked_lm")
    if cfg.optimizer is None:
        raise ConfigError("no optimizer is given: pass --optimizer, for example --optimizer adam")


def stop_rule(cfg: FairseqConfig) -> str:
    """What ends the training, in one sentence."""
    length, limits = cfg.optimization, []
    for value, text in (
        (length.max_update, "after {} updates"),
        (length.max_epoch, "after {} epochs"),
        (length.stop_time_hours, "after {:g} hours"),
        (max(0, cfg.checkpoint.patience), "after {} validations without improvement"),
    ):
        if value > 0:
            limits.append(text.format(value))
    if length.stop_min_lr >= 0:
        limits.append(f"at a learning rate of {length.stop_min_lr:g}")
    if length.max_update > 0 or length.max_epoch > 0:
        return f"training stops {' or '.join(limits)}"
    rule = f"stops {' or '.join(limits)}" if limits else "stops by hand only (Ctrl-C; it can be continued)"
    return f"no limit on updates or epochs (max_update, max_epoch): {rule}"


def describe(task: FairseqTask, model: nn.Module, criterion: nn.Module) -> None:
    """Log what was built."""
    logger.info(model)
    logger.info("task: %s", type(task).__name__)
    logger.info("model: %s", type(model).__name__)
    logger.info("criterion: %s", type(criterion).__name__)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    logger.info(
        "num. model params: %s (num. trained: %s)",
        f"{sum(size for size, _ in sizes):,}",
        f"{sum(size for size, trained in sizes if trained):,}",
    )


def load_validation_data(cfg: FairseqConfig, task: FairseqTask) -> None:
    """Load every validation subset before training, so that a missing one is noticed now."""
    indexed_dataset.raise_if_valid_subsets_unintentionally_ignored(cfg)
    if cfg.dataset.disable_validation:
        return
    if cfg.dataset.combine_valid_subsets:
        task.load_dataset("valid", combine=True, epoch=1)
        return
    for subset in subset_names(cfg):
        task.load_dataset(subset, combine=False, epoch=1)


def load_checkpoint(
    cfg: CheckpointConfig, trainer: Trainer, **iterator_args: Any
) -> tuple[dict[str, Any] | None, EpochBatchIterator]:
    """Restore ``trainer`` as the ``checkpoint`` section ``cfg`` says.

    Returns the checkpoint's ``extra_state`` (None without a checkpoint) and the iterator at the place where training
    goes on. ``iterator_args`` go to ``trainer.get_train_iterator``.
    """
    path, resets = starting_point(cfg)
    overrides = literal_dict(cfg.optimizer_overrides, "--optimizer-overrides")
    extra_state = trainer.load_checkpoint(path, resets, overrides)
    if extra_state is None or resets.dataloader:
        return extra_state, trainer.get_train_iterator(epoch=1, load_dataset=True, **iterator_args)
    position = extra_state["train_iterator"]
    epoch_itr = trainer.get_train_iterator(epoch=position["epoch"], load_dataset=True, **iterator_args)
    epoch_itr.load_state_dict(position)
    return extra_state, epoch_itr


def starting_point(cfg: CheckpointConfig) -> tuple[str, Resets]:
    """The file that a run starts from, if it exists, and what is not taken over from it."""
    resets = Resets(cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
    if cfg.finetune_from_model is not None and any(resets):
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer"
            " or reset_lr_scheduler or reset_meters or reset_dataloader"
        )
    suffix = cfg.checkpoint_suffix or ""
    if cfg.restore_file != last_name():
        if cfg.finetune_from_model:
            raise ConfigError(
                f"--finetune-from-model and --restore-file ({cfg.restore_file}) can not be specified together: keep one"
            )
        path = cfg.restore_file.replace(".pt", suffix + ".pt") if suffix else cfg.restore_file
        if not PathManager.exists(path):
            raise CheckpointError(
                f"--restore-file {path} does not exist; give the path of a checkpoint, or leave the option out to start "
                f"from {cfg.save_dir}/{last_name()} when there is one and from scratch otherwise"
            )
        return path, resets
    last = str(Path(cfg.save_dir) / last_name(suffix))
    if PathManager.exists(last):
        return last, resets
    if cfg.continue_once is not None:
        if not PathManager.exists(cfg.continue_once):
            raise CheckpointError(f"--continue-once {cfg.continue_once} does not exist")
        return cfg.continue_once, resets
    if cfg.finetune_from_model is not None:
        if not PathManager.exists(cfg.finetune_from_model):
            raise ConfigError(f"--finetune-from-model {cfg.finetune_from_model} does not exist")
        logger.info(
            "loading pretrained model from %s: optimizer, schedule, meters and data start anew", cfg.finetune_from_model
        )
        return cfg.finetune_from_model, Resets(True, True, True, True)
    return last, resets
