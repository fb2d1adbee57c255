"""The loss of choosing among candidates (ranking, multiple choice).

Legend: B batch, T tokens, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.configs import SentenceRankingConfig
from fairseq.criterions.fairseq_criterion import FairseqCriterion
from fairseq.criterions.sentence_prediction import log_sentence_metrics, require_head
from fairseq.registry import CRITERIONS

__all__ = ["SentenceRankingConfig", "SentenceRankingCriterion"]


@CRITERIONS.register("sentence_ranking", dataclass=SentenceRankingConfig)
class SentenceRankingCriterion(FairseqCriterion):
    """Negative log-likelihood (nats, summed) of the right candidate, from a softmax over the K scores.

    Every candidate is one pass of the model over ``net_input1`` ... ``net_inputK``; the head has one output. Without
    targets the loss is zero: predictions can be saved for test sets.
    """

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
            model(**sample[f"net_input{k}"], classification_head_name=self.ranking_head_name)[0]
            for k in range(1, self.num_classes + 1)
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
