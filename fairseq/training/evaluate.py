"""Evaluate a checkpoint on data subsets (``fairseq-validate``)."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from fairseq.dataclass.base import literal_dict
from fairseq.errors import ConfigError, NonFiniteError
from fairseq.logging import metrics
from fairseq.models.inference import run_batches
from fairseq.models.loading import load_model_ensemble_and_task
from fairseq.optim import precision
from fairseq.training.batches import progress_of, seed_run, subset_names, valid_batches

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
    seed_run(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu")
    mode = precision.resolve(cfg.common, device)

    logger.info("loading model(s) from %s", cfg.common_eval.path)
    models, saved, task = load_model_ensemble_and_task(
        [cfg.common_eval.path],
        arg_overrides={**(overrides or {}), **literal_dict(cfg.common_eval.model_overrides, "--model-overrides")},
        suffix=cfg.checkpoint.checkpoint_suffix,
    )
    model = precision.cast_model(models[0].to(device), mode).eval()
    criterion = task.build_criterion(saved.criterion).to(device).eval()
    results = {}
    for subset in subset_names(cfg):
        task.load_dataset(subset, combine=False, epoch=1, task_cfg=saved.task)
    for subset in task.validation_subsets(subset_names(cfg)):
        results[subset] = _evaluate_subset(cfg, task, model, criterion, subset, mode)
    return results


def _evaluate_subset(
    cfg: FairseqConfig,
    task: FairseqTask,
    model: BaseFairseqModel,
    criterion: nn.Module,
    subset: str,
    mode: str,
) -> dict[str, Any]:
    batches = valid_batches(cfg, task, model, subset, cfg.dataset.max_tokens, cfg.dataset.batch_size)
    progress = progress_of(cfg, batches.next_epoch_itr(shuffle=False), prefix=f"valid on '{subset}' subset")
    outputs, step = [], 0
    passes = run_batches(
        model, progress, lambda batch: task.valid_step(precision.cast_sample(batch, mode), model, criterion)
    )
    for step, (_, (_, _, logging_output)) in enumerate(passes):
        progress.log({key: value for key, value in logging_output.items() if not key.startswith("_")}, step=step)
        outputs.append(logging_output)
    with metrics.aggregate(collect=True) as meters:
        task.reduce_metrics(outputs, criterion)
        stats = meters.get_smoothed_values()
    progress.print(stats, tag=subset, step=step)
    if stats.get("loss") is not None and not math.isfinite(float(stats["loss"])):
        raise NonFiniteError(f"the loss on {subset!r} is {stats['loss']}: the model's outputs are not finite numbers")
    return stats
