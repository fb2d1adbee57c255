"""Settings of the criterions on tokens (free of torch)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import FairseqDataclass


@dataclass(kw_only=True)
class QuestionAnsweringCriterionConfig(FairseqDataclass):
    """``question_answering`` has no settings of its own; the task's say what is answered."""


@dataclass(kw_only=True)
class TokenClassificationCriterionConfig(FairseqDataclass):
    """``token_classification`` has no settings of its own."""
