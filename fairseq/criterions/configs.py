"""The settings of the criterions. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import HIDDEN, II, FairseqDataclass, follow, option

NOISES = ("normal", "uniform")


@dataclass(kw_only=True)
class MaskedLmConfig(FairseqDataclass):
    """``masked_lm`` has no settings of its own; ``tpu`` is carried by old files."""

    tpu: bool = option(II("common.tpu"), HIDDEN)


@dataclass(kw_only=True)
class SentencePredictionConfig(FairseqDataclass):
    """Classification or regression with a head on the features."""

    classification_head_name: str = option("sentence_classification_head", "name of the classification head")
    regression_target: bool = option(False, "targets are numbers; the loss is the squared error")
    positive_label: str | None = option(
        None, "the label that F1 is about, of two; default: 1 if there is such a label, else the rarer one", new=True
    )
    report_mcc: bool = option(False, "ignored: scores of a validation set are always reported", new=True)
    report_acc_and_f1: bool = option(False, "ignored: scores of a validation set are always reported", new=True)
    report_pearson_and_spearman: bool = option(
        False, "ignored: scores of a validation set are always reported", new=True
    )


@dataclass(kw_only=True)
class SentencePredictionR3FConfig(SentencePredictionConfig):
    """As ``sentence_prediction``, and outputs are to stay the same when the token embeddings are disturbed a little."""

    eps: float = option(1e-5, "size of the noise: its standard deviation, or the most of it", within="(0, inf)")
    r3f_lambda: float = option(1.0, "weight of the divergence from the outputs with noise", within="[0, inf)")
    noise_type: str = option("uniform", "distribution of the noise", choices=NOISES)


@dataclass(kw_only=True)
class SentenceRankingConfig(FairseqDataclass):
    """Choosing among candidates that a head with one output scores."""

    ranking_head_name: str = option("sentence_classification_head", "name of the ranking head")
    save_predictions: str | None = option(None, "file for the predictions: id, predicted choice and label a line")
    num_classes: int = follow("task.num_classes", -1)


@dataclass(kw_only=True)
class QuestionAnsweringCriterionConfig(FairseqDataclass):
    """``question_answering`` has no settings of its own; the task's say what is answered."""


@dataclass(kw_only=True)
class TokenClassificationCriterionConfig(FairseqDataclass):
    """``token_classification`` has no settings of its own."""
