"""The losses on tokens: extractive question answering, and labelling words.

Legend: B windows or sentences, T tokens, K classes, N words of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.configs import QuestionAnsweringCriterionConfig, TokenClassificationCriterionConfig
from fairseq.criterions.fairseq_criterion import CollectingCriterion, layout_for, targets_of
from fairseq.errors import ConfigError
from fairseq.layout import IGNORED
from fairseq.registry import CRITERIONS


@CRITERIONS.register("question_answering", dataclass=QuestionAnsweringCriterionConfig)
class QuestionAnsweringCriterion(CollectingCriterion):
    """Mean of the cross-entropies of first and last token, summed over windows, in nats; padding is not a choice.

    In evaluation the task (``task.head_name``, ``task.span_candidates``, ``task.span_scores``) turns the logits into
    answers, which are scored over the whole set.
    """

    takes_layout = True

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)
        if not hasattr(task, "span_candidates"):
            raise ConfigError("the criterion question_answering needs --task question_answering")
        self.head_name = task.head_name

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """``sample`` is a batch of `fairseq.finetune.spans.SpanDataset`; ``sample_size`` is B."""
        net_input = sample["net_input"]
        given = layout_for(self, model, sample)
        logits = model(**net_input, **given, features_only=True, classification_head_name=self.head_name)[
            0
        ]  # (B, T, 2)
        padding = net_input["src_tokens"].eq(self.padding_idx)
        logits = logits.float().masked_fill(padding.unsqueeze(-1), -torch.inf)
        # (B, T, 2) against (B, 2): the classes are the T tokens.
        loss = F.cross_entropy(logits, targets_of(model, sample, logits), reduction="sum") / 2
        sample_size = len(logits)
        collected = None
        if not self.training:
            collected = ("answers", self.task.span_candidates(sample, logits), self.task.span_scores(sample["subset"]))
        return loss, sample_size, self.logging_output(loss, sample_size, sample, collected)


@CRITERIONS.register("token_classification", dataclass=TokenClassificationCriterionConfig)
class TokenClassificationCriterion(CollectingCriterion):
    """Negative log-likelihood of the words' labels, each at the word's first piece, summed, in nats.

    In evaluation the task (``task.head_name``, ``task.word_labels``, ``task.label_scores``) collects the predictions, which
    are scored over the whole set.
    """

    takes_layout = True

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)
        if not hasattr(task, "word_labels"):
            raise ConfigError("the criterion token_classification needs --task token_classification")
        self.head_name = task.head_name

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor | int, dict[str, Any]]:
        """``sample`` is a batch of `fairseq.finetune.words.TokenLabelsDataset`; ``sample_size`` is N."""
        given = layout_for(self, model, sample)
        logits = model(**sample["net_input"], **given, features_only=True, classification_head_name=self.head_name)[0]
        words, targets = sample["words"], targets_of(model, sample, logits)  # (B, T)
        sample_size: Tensor | int
        if words.device.type == "cpu":
            loss = F.cross_entropy(logits[words].float(), targets[words], reduction="sum")
            sample_size = int(words.sum())
        else:  # without asking the device how many words there are
            targets = targets.masked_fill(~words, IGNORED)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
            sample_size = words.sum()
        collected = None
        if not self.training:
            collected = ("labels", self.task.word_labels(sample, logits), self.task.label_scores(sample["subset"]))
        return loss, sample_size, self.logging_output(loss, sample_size, sample, collected)
