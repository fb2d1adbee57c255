"""The loss of extractive question answering.

Legend: B windows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.collecting import CollectingCriterion
from fairseq.criterions.token_configs import QuestionAnsweringCriterionConfig
from fairseq.errors import ConfigError
from fairseq.registry import CRITERIONS


@CRITERIONS.register("question_answering", dataclass=QuestionAnsweringCriterionConfig)
class QuestionAnsweringCriterion(CollectingCriterion):
    """Mean of the cross-entropies of first and last token, summed over windows, in nats; padding is no choice.

    In evaluation the task (``task.head_name``, ``task.span_candidates``, ``task.span_scores``) turns the logits into
    answers, which are scored over the whole set.
    """

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)
        if not hasattr(task, "span_candidates"):
            raise ConfigError("the criterion question_answering needs --task question_answering")
        self.head_name = task.head_name

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """``sample`` is a batch of `fairseq.data.span_dataset.SpanDataset`; ``sample_size`` is B."""
        net_input = sample["net_input"]
        logits = model(**net_input, features_only=True, classification_head_name=self.head_name)[0]  # (B, T, 2)
        padding = net_input["src_tokens"].eq(self.padding_idx)
        logits = logits.float().masked_fill(padding.unsqueeze(-1), -torch.inf)
        # (B, T, 2) against (B, 2): the classes are the T tokens.
        loss = F.cross_entropy(logits, sample["target"], reduction="sum") / 2
        sample_size = len(logits)
        collected = None
        if not self.training:
            collected = ("answers", self.task.span_candidates(sample, logits), self.task.span_scores(sample["subset"]))
        return loss, sample_size, self.logging_output(loss, sample_size, sample, collected)
