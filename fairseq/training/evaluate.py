"""Evaluate a checkpoint on data subsets (``fairseq-validate``)."""

from __future__ import annotations

import ast
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fairseq.distributed import utils as distributed
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.logging.progress import progress_bar
from fairseq.models.loading import load_model_ensemble_and_task
from fairseq.optim import precision
from fairseq.training.limits import resolve_max_positions
from fairseq.training.tensors import to_device

if TYPE_CHECKING:
    from torch import nn

    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models.fairseq_model import BaseFairseqModel
    from fairseq.tasks.fairseq_task import FairseqTask

logger = logging.getLogger(__name__)


def evaluate(cfg: FairseqConfig, overrides: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Statistics of ``cfg.common_eval.path`` on every subset of ``cfg.dataset.valid_subset``.

    Task, model and criterion are those stored in the checkpoint; ``overrides`` (option name to value) replace stored
    settings, and ``--model-overrides`` (a literal dictionary) comes on top of them.
    """
    if not cfg.common_eval.path:
        raise ConfigError("no checkpoint is given: pass --path CHECKPOINT")
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        raise ConfigError("the size of a batch is not given: pass --max-tokens or --batch-size")
    np.random.seed(cfg.common.seed)
    torch.manual_seed(cfg.common.seed)
    device = torch.device("cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu")
    mode = precision.resolve(cfg.common, device)

    logger.info("loading model(s) from %s", cfg.common_eval.path)
    models, saved, task = load_model_ensemble_and_task(
        [cfg.common_eval.path],
        arg_overrides={**(overrides or {}), **_literal_dict(cfg.common_eval.model_overrides)},
        suffix=cfg.checkpoint.checkpoint_suffix,
    )
    model = precision.cast_model(models[0].to(device), mode).eval()
    criterion = task.build_criterion(saved.criterion).to(device).eval()
    results = {}
    for subset in cfg.dataset.valid_subset.split(","):
        task.load_dataset(subset, combine=False, epoch=1, task_cfg=saved.task)
        results[subset] = _evaluate_subset(cfg, task, model, criterion, subset, device, mode)
    return results


def _evaluate_subset(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: BaseFairseqModel,
    criterion: nn.Module,
    subset: str,
    device: torch.device,
    mode: str,
) -> dict[str, Any]:
    data = cfg.dataset
    batches = task.get_batch_iterator(
        dataset=task.dataset(subset),
        max_tokens=data.max_tokens,
        max_sentences=data.batch_size,
        max_positions=resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=data.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=data.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_shards=distributed.get_data_parallel_world_size(),
        shard_id=distributed.get_data_parallel_rank(),
        num_workers=data.num_workers,
        data_buffer_size=data.data_buffer_size or 0,
    ).next_epoch_itr(shuffle=False)
    progress = progress_bar(
        batches,
        log_format=cfg.common.log_format,
        log_interval=cfg.common.log_interval,
        prefix=f"valid on '{subset}' subset",
        default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
    )
    outputs = []
    step = 0
    with torch.no_grad():
        for step, sample in enumerate(progress):
            batch = precision.cast_sample(to_device(sample, device), mode)
            _, _, logging_output = task.valid_step(batch, model, criterion)
            progress.log(logging_output, step=step)
            outputs.append(logging_output)
    with metrics.aggregate() as meters:
        task.reduce_metrics(outputs, criterion)
        stats = meters.get_smoothed_values()
    progress.print(stats, tag=subset, step=step)
    return stats


def _literal_dict(text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"--model-overrides must be a literal dictionary, but is {text!r}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--model-overrides must be a dictionary, but is {text!r}")
    return value
