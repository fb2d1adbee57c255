"""The loss of labelling words.

Legend: B batch, T tokens, K classes, N words of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.fairseq_criterion import FairseqCriterion
from fairseq.criterions.token_configs import TokenClassificationCriterionConfig
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.registry import CRITERIONS


@CRITERIONS.register("token_classification", dataclass=TokenClassificationCriterionConfig)
class TokenClassificationCriterion(FairseqCriterion):
    """Negative log-likelihood of the words' labels, each at the word's first piece, summed, in nats.

    In evaluation the task (``task.head_name``, ``task.word_labels``, ``task.label_scores``) collects the predictions, which
    are scored over the whole set.
    """

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)
        if not hasattr(task, "word_labels"):
            raise ConfigError("the criterion token_classification needs --task token_classification")
        self.head_name = task.head_name

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """``sample`` is a batch of `fairseq.data.token_labels_dataset.TokenLabelsDataset`; ``sample_size`` is N."""
        logits = model(**sample["net_input"], features_only=True, classification_head_name=self.head_name)[0]
        words = sample["words"]  # (B, T)
        loss = F.cross_entropy(logits[words].float(), sample["target"][words], reduction="sum")
        sample_size = int(words.sum())
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if not self.training:
            labels = self.task.word_labels(sample, logits)
            logging_output["_labels"] = (labels, self.task.label_scores(sample["subset"]))
        return loss, sample_size, logging_output

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss per word in bits and, on whole validation sets, ``accuracy``, ``precision``, ``recall``, ``f1``."""
        loss = sum(output.get("loss", 0) for output in logging_outputs)
        sample_size = sum(output.get("sample_size", 0) for output in logging_outputs)
        metrics.log_scalar("loss", loss / max(1, sample_size) / math.log(2), sample_size, round=3)
        for output in logging_outputs:
            if "_labels" in output:
                labels, scores = output["_labels"]
                metrics.log_collected("labels", labels, scores)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """No: in evaluation they hold predictions."""
        return False
