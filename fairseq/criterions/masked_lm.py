"""The masked-LM loss.

Legend: B batch, T tokens, N masked tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.criterions.configs import MaskedLmConfig
from fairseq.criterions.fairseq_criterion import FairseqCriterion, layout_for, mean_over
from fairseq.logging import metrics
from fairseq.logging.meters import safe_round
from fairseq.registry import CRITERIONS


@CRITERIONS.register("masked_lm", dataclass=MaskedLmConfig)
class MaskedLmLoss(FairseqCriterion):
    """Negative log-likelihood of the masked tokens, summed, in nats, from a float32 softmax.

    A position counts when its target is not padding. Deviation from the original: a batch without masked tokens
    projects nothing instead of everything; its loss and gradients are zero either way.
    """

    takes_layout = True

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task)

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor | int, dict[str, Any]]:
        """``sample`` has ``net_input``, ``target`` (B, T), ``ntokens`` and ``nsentences``; ``sample_size`` is N."""
        inputs, masked, targets, sample_size = self._predicted(model, sample)
        if getattr(model, "computes_loss", False):  # without ever holding all logits
            loss = model(**inputs, masked_tokens=masked, masked_targets=targets)[0]
        else:
            logits = model(**inputs, masked_tokens=masked)[0]  # (N, V)
            loss = summed_loss(logits.view(-1, logits.size(-1)), targets)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        return loss, sample_size, logging_output

    def _predicted(
        self, model: nn.Module, sample: dict[str, Any]
    ) -> tuple[dict[str, Any], Tensor, Tensor, Tensor | int]:
        """Arguments of the model, the masked tokens, their targets and their number, counted on the host if possible."""
        given = layout_for(self, model, sample)
        inputs = {**sample["net_input"], **given}
        predicted = given["layout"].predicted if given else None
        if predicted is not None and getattr(model, "uses_places", False):
            return inputs, predicted.places, predicted.targets, predicted.count
        masked = sample["target"].ne(self.padding_idx)
        return inputs, masked, sample["target"][masked], masked.sum()

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss per masked token in bits, and the perplexity that follows from it."""
        loss = sum(output.get("loss", 0) for output in logging_outputs)
        sample_size = sum(output.get("sample_size", 0) for output in logging_outputs)
        metrics.log_scalar("loss", mean_over(loss, sample_size) / math.log(2), sample_size, round=5)
        metrics.log_derived("ppl", lambda meters: perplexity(meters["loss"].avg))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits (N, V); the softmax reads half precision but computes and keeps float32."""
    return F.nll_loss(F.log_softmax(logits, dim=-1, dtype=torch.float32), targets, reduction="sum")


def perplexity(loss: Any, base: float = 2, round: int = 2) -> float:
    """``base ** loss``, rounded; infinity when it overflows. A float32 tensor is raised in float32, as in old logs."""
    try:
        return safe_round(base**loss, round)
    except OverflowError:
        return float("inf")
