"""What criterions have in common whose scores are those of a whole set, not means over batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fairseq.criterions.fairseq_criterion import FairseqCriterion
from fairseq.logging import metrics


class CollectingCriterion(FairseqCriterion):
    """In evaluation the task's predictions are collected batch by batch, and scored once the set is complete."""

    @staticmethod
    def logging_output(
        loss: Tensor, sample_size: int, sample: dict[str, Any], collected: tuple[str, Any, Any] | None = None
    ) -> dict[str, Any]:
        """The output of a batch. ``collected``: a name, the batch's predictions, and the function that scores them all."""
        output = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        return output if collected is None else {**output, "_collected": collected}

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """Log the loss in bits (per window, per word, ...) and, on whole validation sets, the task's scores."""
        loss = sum(output.get("loss", 0) for output in logging_outputs)
        sample_size = sum(output.get("sample_size", 0) for output in logging_outputs)
        metrics.log_scalar("loss", loss / max(1, sample_size) / math.log(2), sample_size, round=3)
        for output in logging_outputs:
            if "_collected" in output:
                metrics.log_collected(*output["_collected"])

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """No: in evaluation they hold predictions."""
        return False
