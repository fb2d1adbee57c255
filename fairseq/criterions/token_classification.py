"""The loss of labelling words.

Legend: B batch, T tokens, K classes, N words of the batch.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.collecting import CollectingCriterion
from fairseq.criterions.token_configs import TokenClassificationCriterionConfig
from fairseq.errors import ConfigError
from fairseq.registry import CRITERIONS


@CRITERIONS.register("token_classification", dataclass=TokenClassificationCriterionConfig)
class TokenClassificationCriterion(CollectingCriterion):
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
        collected = None
        if not self.training:
            collected = ("labels", self.task.word_labels(sample, logits), self.task.label_scores(sample["subset"]))
        return loss, sample_size, self.logging_output(loss, sample_size, sample, collected)
