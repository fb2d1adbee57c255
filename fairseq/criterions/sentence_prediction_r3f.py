"""The loss ``sentence_prediction_r3f``: fine-tuning with robust representations (Aghajanyan et al. 2020, arXiv 2008.03156).

Legend: B batch, T tokens, C channels, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, Uniform

from fairseq.criterions.configs import NOISES, SentencePredictionR3FConfig
from fairseq.criterions.fairseq_criterion import mean_over
from fairseq.criterions.sentences import SentencePredictionCriterion, log_sentence_metrics, require_head
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.registry import CRITERIONS

logger = logging.getLogger(__name__)


@CRITERIONS.register("sentence_prediction_r3f", dataclass=SentencePredictionR3FConfig)
class SentencePredictionR3F(SentencePredictionCriterion):
    """In training: the loss of ``sentence_prediction`` + lambda * B * the symmetric divergence of two passes, of which one
    has noise on the token embeddings (and its own dropout). In evaluation, and for regression: ``sentence_prediction``.
    """

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        if self.multi_label:
            raise ConfigError("sentence_prediction_r3f compares distributions over classes: leave out task.multi_label")
        if self.regression_target:
            logger.warning("regression has no distribution to compare: the noise of R3F is without effect")
        if cfg.noise_type not in NOISES:
            raise ConfigError(f"criterion.noise_type must be one of {', '.join(NOISES)}, but is {cfg.noise_type!r}")
        self.r3f_lambda = cfg.r3f_lambda
        self.noise = Normal(0.0, cfg.eps) if cfg.noise_type == "normal" else Uniform(-cfg.eps, cfg.eps)

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """As ``sentence_prediction``; the gradient reaches the token embeddings by the pass without noise only."""
        if not model.training or self.regression_target:
            return super().forward(model, sample, reduce)
        require_head(model, self.classification_head_name)
        embedded = _embeddings(model, sample)  # (B, T, C)
        logits = self.logits(model, sample, token_embeddings=embedded)
        noise = self.noise.sample(embedded.shape).to(embedded)
        noised = self.logits(model, sample, token_embeddings=embedded.detach() + noise)
        loss, sample_size, logging_output = self.judge(model, sample, logits)
        divergence = symmetric_divergence(noised, logits) * sample_size
        loss = loss + self.r3f_lambda * divergence
        return loss, sample_size, {**logging_output, "loss": loss.detach(), "symm_kl": divergence.detach()}

    @staticmethod
    def reduce_metrics(logging_outputs: Sequence[dict[str, Any]]) -> None:  # type: ignore[override]
        """As ``sentence_prediction``, and in training the divergence per example (nats)."""
        log_sentence_metrics(logging_outputs)
        if any("symm_kl" in output for output in logging_outputs):
            divergence = sum(output.get("symm_kl", 0) for output in logging_outputs)
            sample_size = sum(output.get("sample_size", 0) for output in logging_outputs)
            metrics.log_scalar("symm_kl", mean_over(divergence, sample_size), sample_size, round=5)


def symmetric_divergence(a: Tensor, b: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) for p, q = softmax of logits (B, K), the mean over B, in nats and float32."""
    log_p, log_q = (F.log_softmax(logits, dim=-1, dtype=torch.float32) for logits in (a, b))
    p, q = (F.softmax(logits, dim=-1, dtype=torch.float32) for logits in (a, b))
    return (F.kl_div(log_p, q, reduction="sum") + F.kl_div(log_q, p, reduction="sum")) / len(a)


def _embeddings(model: Any, sample: dict[str, Any]) -> Tensor:
    """The token embeddings (B, T, C) of a batch. Raises ConfigError for a model without such a table."""
    table = getattr(getattr(getattr(model, "encoder", None), "sentence_encoder", None), "embed_tokens", None)
    if table is None:
        raise ConfigError(
            f"sentence_prediction_r3f disturbs the token embeddings of encoder.sentence_encoder, which {type(model).__name__} "
            "does not have: choose a roberta architecture"
        )
    return table(sample["net_input"]["src_tokens"])
