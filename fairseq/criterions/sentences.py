"""The losses on whole sentences: classification, regression, and choosing among candidates.

Legend: B batch, T tokens, K classes, candidates, or values per sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions import scores
from fairseq.criterions.configs import SentencePredictionConfig, SentenceRankingConfig
from fairseq.criterions.fairseq_criterion import FairseqCriterion, layout_for, mean_over
from fairseq.errors import ConfigError, DataError
from fairseq.logging import metrics
from fairseq.registry import CRITERIONS


@CRITERIONS.register("sentence_prediction", dataclass=SentencePredictionConfig)
class SentencePredictionCriterion(FairseqCriterion):
    """Sums in nats: negative log-likelihood of the class, squared error, or binary cross-entropy of several labels.

    The sample size is the number of targets: B, or B * K for numbers and for several labels.
    """

    takes_layout = True

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)
        self.classification_head_name = cfg.classification_head_name
        self.regression_target = bool(cfg.regression_target)
        self.multi_label = bool(getattr(task, "multi_label", False))
        self.positive = None
        if not self.regression_target and not self.multi_label:
            self.positive = positive_class(task, getattr(cfg, "positive_label", None))

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """``sample`` has ``net_input``, ``target`` and ``ntokens``. Raises ConfigError without the head, DataError
        without targets.
        """
        require_head(model, self.classification_head_name)
        return self.judge(model, sample, self.logits(model, sample))

    def logits(self, model: nn.Module, sample: dict[str, Any], **more: Any) -> Tensor:
        """Output of the head (B, K); ``more`` are further arguments of the model."""
        return model(
            **sample["net_input"],
            **layout_for(self, model, sample),
            features_only=True,
            classification_head_name=self.classification_head_name,
            **more,
        )[0]

    def judge(self, model: nn.Module, sample: dict[str, Any], logits: Tensor) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size and logging output for the ``logits`` (B, K) of ``model``."""
        targets = require_target(sample, self.task)
        if self.regression_target:
            predictions, targets = logits.float(), targets.float()
            loss = F.mse_loss(predictions.view(-1), targets.view(-1), reduction="sum")
        elif self.multi_label:
            predictions = logits.gt(0)
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")
        else:
            targets = targets.view(-1)
            predictions = logits.argmax(dim=1)
            loss = F.nll_loss(F.log_softmax(logits, dim=-1, dtype=torch.float32), targets, reduction="sum")
        sample_size = targets.numel()
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": len(targets) if self.multi_label else sample_size,
            "sample_size": sample_size,
        }
        if self.multi_label:
            logging_output["ncorrect"] = predictions.eq(targets.bool()).all(dim=1).sum()
        elif not self.regression_target:
            logging_output["ncorrect"] = predictions.eq(targets).sum()
        if not self.training:
            logging_output["_scored"] = (predictions.detach(), targets, self._scores())
        return loss, sample_size, logging_output

    def _scores(self) -> scores.Scores:
        if self.regression_target:
            return scores.regression
        return scores.multi_label if self.multi_label else scores.of_classes(self.positive)

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss per target in bits, the accuracy in percent, and on validation sets the scores."""
        log_sentence_metrics(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """No: in evaluation they hold every prediction."""
        return False


def positive_class(task: Any, name: str | None) -> int | None:
    """The class that F1 is about, when there are two: ``name``, else the label ``1``, else the second (rarer) one."""
    if getattr(task.cfg, "num_classes", None) != 2:
        return None
    dictionary = task.label_dictionary
    labels = dictionary.symbols[dictionary.nspecial : dictionary.nspecial + 2]
    if name is not None and name not in labels:
        raise ConfigError(f"criterion.positive_label {name!r} is not a label; the labels are {', '.join(labels)}")
    chosen = name if name is not None else "1"
    return labels.index(chosen) if chosen in labels else 1


def require_head(model: nn.Module, name: str) -> None:
    """Raise ConfigError when ``model`` has no head ``name``."""
    if name not in getattr(model, "classification_heads", ()):
        raise ConfigError(
            f"the model has no classification head {name!r}: choose a task that registers one (sentence_prediction, "
            "sentence_ranking, multiple_choice) and a model with heads (roberta)"
        )


def require_target(sample: dict[str, Any], task: Any) -> Tensor:
    """The targets of a batch. Raises DataError when its split came without labels."""
    if "target" not in sample:
        data = getattr(task.cfg, "data", "DATA")
        raise DataError(
            f"a split without labels cannot be trained or validated on: its files (.bin and .idx for classes, .label for "
            f"numbers and choices) are missing in {data}/label"
        )
    return sample["target"]


def log_sentence_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:
    """Log what the outputs of classification, regression and ranking amount to."""

    def total(name: str) -> Any:
        return sum(output.get(name, 0) for output in logging_outputs)

    loss, ntokens, nsentences, sample_size = (total(k) for k in ("loss", "ntokens", "nsentences", "sample_size"))
    metrics.log_scalar("loss", mean_over(loss, sample_size) / math.log(2), sample_size, round=3)
    if sample_size != ntokens:
        metrics.log_scalar("nll_loss", mean_over(loss, ntokens) / math.log(2), ntokens, round=3)
    if logging_outputs and "ncorrect" in logging_outputs[0]:
        metrics.log_scalar("accuracy", 100.0 * total("ncorrect") / nsentences, nsentences, round=1)
    for output in logging_outputs:
        if "_scored" in output:
            predictions, targets, score = output["_scored"]
            metrics.log_collected("scores", (predictions, targets), score)


@CRITERIONS.register("sentence_ranking", dataclass=SentenceRankingConfig)
class SentenceRankingCriterion(FairseqCriterion):
    """Negative log-likelihood (nats, summed) of the right candidate, from a softmax over the K scores.

    Every candidate is one pass of the model over ``net_input1`` ... ``net_inputK``; the head has one output. Without
    targets the loss is zero: predictions can be saved for test sets.
    """

    takes_layout = True

    def __init__(
        self, task: Any, ranking_head_name: str, num_classes: int, save_predictions: str | None = None
    ) -> None:
        super().__init__(task)
        self.ranking_head_name = ranking_head_name
        self.num_classes = num_classes
        self.predictions = None if save_predictions is None else Path(save_predictions)
        if self.predictions is not None:
            self.predictions.write_text("")

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """``sample`` has ``net_input1`` ... ``net_inputK``, ``ntokens`` and perhaps ``target`` (B)."""
        require_head(model, self.ranking_head_name)
        scores = [
            model(
                **sample[name], **layout_for(self, model, sample, name), classification_head_name=self.ranking_head_name
            )[0]
            for name in (f"net_input{k}" for k in range(1, self.num_classes + 1))
        ]
        logits = torch.cat(scores, dim=1)  # (B, K)
        choices = logits.argmax(dim=1)
        targets = sample["target"].view(-1) if "target" in sample else None
        if targets is None:
            loss = torch.zeros((), device=logits.device, requires_grad=True)
        else:
            loss = F.nll_loss(F.log_softmax(logits, dim=-1, dtype=torch.float32), targets, reduction="sum")
        if self.predictions is not None:
            self._save(sample["id"], choices, targets)
        sample_size = logits.size(0)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample_size,
            "sample_size": sample_size,
        }
        if targets is not None:
            logging_output["ncorrect"] = choices.eq(targets).sum()
        return loss, sample_size, logging_output

    def _save(self, ids: Tensor, choices: Tensor, targets: Tensor | None) -> None:
        """Append a line ``id<TAB>choice[<TAB>label]`` for every example."""
        columns = [ids.tolist(), choices.tolist()] + ([] if targets is None else [targets.tolist()])
        assert self.predictions is not None
        with self.predictions.open("a") as handle:
            handle.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss per example in bits and the accuracy in percent."""
        log_sentence_metrics(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
