"""A training run from the configuration, and the checkpoint that it starts from, to its last checkpoint."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fairseq.checkpoint.interrupted import finish_save
from fairseq.checkpoint.reader import read
from fairseq.checkpoint.store import last_name, resumable
from fairseq.data import indexed_dataset
from fairseq.dataclass.base import literal_dict
from fairseq.dataclass.state import changed_settings, config_to_state
from fairseq.distributed import group as distributed
from fairseq.errors import CheckpointError, ConfigError
from fairseq.file_io import PathManager
from fairseq.limits import too_large, too_many_files
from fairseq.locks import claimed
from fairseq.logging import metrics
from fairseq.logging.progress import own_logs
from fairseq.logging.setup import TRAIN_LOGGER, log_to_files
from fairseq.ops import library
from fairseq.optim import precision
from fairseq.rng import undisturbed
from fairseq.tasks import setup_task
from fairseq.training import signals
from fairseq.training.batches import check_sample_sizes, seed_run, subset_names
from fairseq.training.inherited import check_bpe, keep_architecture
from fairseq.training.loop import train_epochs
from fairseq.training.run_state import Resets
from fairseq.training.sharding import check_sharding
from fairseq.training.trainer import Trainer

if TYPE_CHECKING:
    from fairseq.data.iterators import EpochBatchIterator
    from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
    from fairseq.tasks.fairseq_task import FairseqTask

logger = logging.getLogger(TRAIN_LOGGER)

_WORKER = 1 << 26  # bytes that a data worker needs at least


def train(cfg: FairseqConfig) -> float | None:
    """Run the training that ``cfg`` describes; returns the last validation value (None without validation).

    The process is left as it was found: other runs may follow in it.
    """
    check(cfg)
    keep_architecture(cfg)
    logs = own_logs(cfg.common.log_file)
    own_numbers = torch.random.fork_rng(devices=[])
    with signals.remembered(), logs, undisturbed(), own_numbers, precision.tf32(cfg.common.tf32):
        return _train(cfg)


def _train(cfg: FairseqConfig) -> float | None:
    metrics.reset()
    seed_run(cfg)
    log_to_files(logger, config_to_state(cfg))
    logger.info("settings: %s", " ".join(f"{key}={value}" for key, value in changed_settings(cfg).items()))

    task = setup_task(cfg.task, bpe=cfg.bpe)
    task.check_shards(cfg.dataset.train_subset)
    model = task.build_model(cfg.model)
    criterion = task.build_criterion(cfg.criterion)
    describe(task, model, criterion)
    load_validation_data(cfg, task)

    trainer = Trainer(cfg, task, model, criterion)
    trainer.store.verify_directory()
    with own_directory(cfg.checkpoint):
        if trainer.is_data_parallel_master:
            trainer.store.clear_directory()
        return _train_from_here(cfg, trainer)


def own_directory(cfg: CheckpointConfig) -> contextlib.AbstractContextManager[Any]:
    """Hold ``save_dir``: two runs in one directory would mix their files."""
    if cfg.no_save or distributed.get_global_rank() > 0:
        return contextlib.nullcontext()
    return claimed(cfg.save_dir, "fairseq-train", "wait for it, or choose another --save-dir")


def _train_from_here(cfg: FairseqConfig, trainer: Trainer) -> float | None:
    """Train from the checkpoint that there is."""
    task, model = trainer.task, trainer.model
    section, several = cfg.distributed_training, ""
    if section.distributed_world_size > 1:
        several = f", {section.distributed_world_size} processes ({section.ddp_backend})"
    logger.info("training on %s in %s precision%s", trainer.device, trainer.precision, several)
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
    check_bpe(cfg.bpe, task.source_dictionary)
    trainer.peers.check_start(model, (trainer.get_num_updates(), epoch_itr.next_epoch_idx, epoch_itr.batches_in_epoch))
    if cfg.optimization.max_update and trainer.get_num_updates() >= cfg.optimization.max_update:
        logger.info("nothing to do: %d updates are done already", trainer.get_num_updates())
        return None
    if not (cfg.dataset.disable_validation or cfg.dataset.skip_invalid_size_inputs_valid_test):
        for subset in task.validation_subsets(subset_names(cfg)):  # rather than at the first validation
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
    workers = too_large(max(data.num_workers, 0) * _WORKER)
    if workers is not None:
        raise ConfigError(f"num_workers is {data.num_workers}: so many processes need {workers}")
    # Every tensor on its way from a worker is an open file.
    files = (
        too_many_files(32 + 5 * (data.data_buffer_size or 0) + 8 * data.num_workers) if data.num_workers > 0 else None
    )
    if files is not None:
        raise ConfigError(
            f"num_workers is {data.num_workers}: data workers need {files}; raise it, or give --num-workers 0"
        )
    if not cfg.optimization.update_freq:
        raise ConfigError("update_freq is an empty list; give at least one number of batches per update")
    if cfg.criterion is None:
        raise ConfigError("no criterion is given: pass --criterion, for example --criterion masked_lm")
    if cfg.optimizer is None:
        raise ConfigError("no optimizer is given: pass --optimizer, for example --optimizer adam")
    check_sharding(cfg)


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
    own = resumable(cfg)
    found_here = cfg.restore_file == last_name() and path in own  # and not one that was asked for
    if found_here and not cfg.no_save and trainer.is_data_parallel_master:
        finish_save(trainer.store, path)
    others = [other for other in own if other != path] if path in own else []
    more = {"fallbacks": others} if others else {}  # a trainer of a plugin may not know of them
    extra_state = trainer.load_checkpoint(
        path, resets.optimizer, resets.lr_scheduler, overrides, reset_meters=resets.meters, **more
    )
    if extra_state is None or resets.dataloader:
        return extra_state, trainer.get_train_iterator(epoch=1, load_dataset=True, **iterator_args)
    position = extra_state["train_iterator"]
    epoch_itr = trainer.get_train_iterator(epoch=position["epoch"], load_dataset=True, **iterator_args)
    epoch_itr.load_state_dict(position)
    if position["iterations_in_epoch"] == 0 and position["epoch"] > 1 and not (resets.lr_scheduler or resets.optimizer):
        # It was written before the schedule heard that the epoch was over, and of its validation loss.
        trainer.lr_step(position["epoch"] - 1, extra_state.get("val_loss"))
    stored = extra_state.get(trainer.task.__class__.__name__)
    if stored:  # after the data is loaded, as in the original
        trainer.task.set_checkpoint_dict(stored)
    return extra_state, epoch_itr


def starting_point(cfg: CheckpointConfig) -> tuple[str, Resets]:
    """The file that a run starts from, if it exists, and what is not taken over from it."""
    resets = Resets(cfg.reset_optimizer, cfg.reset_lr_scheduler, cfg.reset_meters, cfg.reset_dataloader)
    if cfg.finetune_from_model is not None and any(resets):
        raise ConfigError(
            "--finetune-from-model can not be set together with either --reset-optimizer"
            " or reset_lr_scheduler or reset_meters or reset_dataloader"
        )
    suffix = getattr(cfg, "checkpoint_suffix", None) or ""  # configurations made by hand may lack it
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
    own = resumable(cfg)
    if own:
        return newest(own), resets
    once = getattr(cfg, "continue_once", None)
    if once is not None:
        if not PathManager.exists(once):
            raise CheckpointError(f"--continue-once {once} does not exist")
        return once, resets
    if cfg.finetune_from_model is not None:
        if not PathManager.exists(cfg.finetune_from_model):
            raise ConfigError(f"--finetune-from-model {cfg.finetune_from_model} does not exist")
        logger.info(
            "loading pretrained model from %s: optimizer, schedule, meters and data start anew", cfg.finetune_from_model
        )
        return cfg.finetune_from_model, Resets(True, True, True, True)
    return str(Path(cfg.save_dir) / last_name(suffix)), resets


def newest(paths: list[str]) -> str:
    """Of checkpoints, the latest written one first, the one with the most updates; their times alone may mislead."""
    last = next((path for path in paths if Path(path).name.startswith("checkpoint_last")), paths[0])
    if last == paths[0]:
        return last
    return last if _updates(last) >= _updates(paths[0]) else paths[0]


def _updates(path: str) -> int:
    try:
        return int(read(path, mmap=True, with_config=False, shards=None)["optimizer_history"][-1]["num_updates"])
    except (CheckpointError, LookupError, TypeError, ValueError):
        return -1
