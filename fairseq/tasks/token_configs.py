"""Settings of the tasks on tokens: question answering and token classification (free of torch)."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq.dataclass.base import II, MISSING, FairseqDataclass, option


@dataclass(kw_only=True)
class TokenTaskConfig(FairseqDataclass):
    """What the two tasks have in common."""

    data: str = option(MISSING, "directory with input0 and label, as fairseq-preprocess-task writes it")
    max_positions: int = option(512, "longest input in tokens; the model's max-positions follows")
    no_shuffle: bool = option(False, "keep the order of the files")
    group_by_length: bool = option(
        False, "make batches of inputs of similar length, other ones in each epoch: less padding"
    )
    predictions: str | None = option(
        None, "write the predictions of every validation to this file; {subset} in it becomes the subset's name"
    )
    seed: int = II("common.seed")
    omit_mask: bool = option(
        False,
        "leave <mask> out of the dictionary, as models with zero masking were pretrained",
        alias="--omit-mask-and-pad",
    )


@dataclass(kw_only=True)
class QuestionAnsweringConfig(TokenTaskConfig):
    """Answers that are spans of a context (SQuAD)."""

    head_name: str = option("question_answering_head", "name of the head")
    window_length: int | None = option(
        None, "tokens of a window <s> question </s> </s> context </s>; default: max-positions"
    )
    doc_stride: int = option(128, "pieces of the context from the beginning of one window to that of the next")
    max_query_length: int = option(64, "questions are cut to so many pieces")
    max_answer_length: int = option(30, "longest answer in pieces")
    n_best: int = option(20, "spans kept of a window, and written of a question to FILE.nbest.json")
    allow_no_answer: bool = option(False, "questions may have no answer (SQuAD 2.0)")
    null_score_threshold: float = option(
        0.0, "no answer is given when it beats the best span by more than this (sum of two logits)"
    )


@dataclass(kw_only=True)
class TokenClassificationConfig(TokenTaskConfig):
    """A label for every word (CoNLL columns)."""

    head_name: str = option("token_classification_head", "name of the head")
    entity_scores: bool = option(
        True, "report precision, recall and F1 of whole entities (B-PER, I-PER, O)", action="boolean"
    )
