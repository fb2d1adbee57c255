"""The task ``question_answering``: answers that are spans of a context, as in SQuAD 1.1 and 2.0.

Files: see `fairseq.finetune.squad`. A context too long for the model is read in overlapping windows; a batch
is described at `fairseq.finetune.spans.SpanDataset.collater`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq.criterions.scores import squad_score
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.finetune.sentences import check_ids
from fairseq.finetune.spans import (
    Decision,
    Questions,
    Rules,
    SpanDataset,
    WindowSizes,
    answer_text,
    decide_all,
    questions_in_memory,
)
from fairseq.finetune.squad import load_squad, read_squad
from fairseq.tasks.configs import QuestionAnsweringConfig
from fairseq.tasks.fairseq_task import register_task
from fairseq.tasks.prediction import write_answers
from fairseq.tasks.sentence_task import SentenceTask

__all__ = ["QuestionAnsweringConfig", "QuestionAnsweringTask"]

logger = logging.getLogger(__name__)


@register_task("question_answering", dataclass=QuestionAnsweringConfig)
class QuestionAnsweringTask(SentenceTask):
    """Extractive question answering; reports ``em`` and ``f1`` (x100) by SQuAD's official rules."""

    cfg: QuestionAnsweringConfig
    criterion_name = "question_answering"

    def __init__(self, cfg: Any, dictionary: Dictionary) -> None:
        super().__init__(cfg, dictionary)
        for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best"):
            if getattr(cfg, name) < 1:
                raise ConfigError(f"task.{name} must be at least 1, but is {getattr(cfg, name)} instead")
        length = cfg.window_length or cfg.max_positions
        if length > cfg.max_positions:
            raise ConfigError(
                f"task.window_length must be at most task.max_positions ({cfg.max_positions}), but is {length} instead"
            )
        self.head_name: str = cfg.head_name
        self.windows = WindowSizes(length, cfg.doc_stride, cfg.max_query_length, cfg.max_answer_length)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> QuestionAnsweringTask:
        """The task with the dictionary of ``DATA/input0``."""
        return cls(cfg, cls.load_input_dictionary(cfg, "input0"))

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> Any:
        """Load ``split``, the same in every epoch. Raises DataNotFoundError and DataError."""
        source = load_squad(self.cfg.data, split)
        for name, pieces in (("input0", source.questions), ("input1", source.contexts)):
            check_ids(f"{self.cfg.data}/{name}/{split}", pieces, self.dictionary)
        unanswered = next((record for record in source.records if not record.answers), None)
        if unanswered is not None and not self.cfg.allow_no_answer and "test" not in split:
            raise DataError(
                f"{self.cfg.data}/label/{split}.jsonl: question {unanswered.id!r} has no answer; these are data of SQuAD 2.0:"
                " set task.allow_no_answer=true (--allow-no-answer)"
            )
        dataset = SpanDataset(source, self.dictionary, self.windows, split)
        logger.info("Loaded %s with #samples: %d (%d questions)", split, len(dataset), len(source.records))
        self.datasets[split] = self.ordered(dataset, dataset.sizes)
        return self.datasets[split]

    def add_head(self, model: Any) -> None:
        model.register_span_head(self.head_name)

    # ---- from logits to answers ---------------------------------------------------------------------------------

    def span_candidates(self, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """`decode` for a batch of validation."""
        return self.decode(self.windows_of(sample["subset"]), sample, logits)

    def span_scores(self, subset: str) -> Callable[[list[Tensor]], dict[str, float]]:
        """A function from all candidates of a pass over ``subset`` to its scores; it also writes the predictions."""

        def finish(candidates: list[Tensor]) -> dict[str, float]:
            source = self.windows_of(subset).source
            decisions = decide_all(candidates, self.rules)
            if self.cfg.predictions:
                path = self.cfg.predictions.replace("{subset}", subset)
                write_answers(path, source, decisions, self.cfg.allow_no_answer)
            return self.scores(source, decisions)

        return finish

    # ---- predictions of files and splits --------------------------------------------------------------------------

    def file_examples(self, path: str, bpe: Any) -> SpanDataset:
        """The questions of a file in SQuAD's JSON; its answers, if any, are not looked at."""
        asked = (
            (question.id, question.text, paragraph.context)
            for paragraph in read_squad(Path(path), "unknown")
            for question in paragraph.questions
        )
        return SpanDataset(questions_in_memory(asked, bpe, self.dictionary), self.dictionary, self.windows)

    def split_examples(self, data: str, split: str) -> SpanDataset:
        """The questions of a preprocessed ``split`` of the directory ``data``."""
        return SpanDataset(load_squad(data, split), self.dictionary, self.windows)

    def decode(self, examples: SpanDataset, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """The best spans of a batch's windows (N, 4); see `SpanDataset.candidates`."""
        return examples.candidates(sample["id"], logits, self.cfg.n_best)

    def write_predictions(self, path: str, examples: SpanDataset, found: Iterable[Tensor]) -> int:
        """Decide on ``found``, what `decode` gave of all batches, and write the answers; returns their number."""
        decisions = decide_all(found, self.rules)
        write_answers(path, examples.source, decisions, self.cfg.allow_no_answer)
        return len(decisions)

    @property
    def rules(self) -> Rules:
        """How answers are chosen."""
        return Rules(self.cfg.n_best, self.cfg.allow_no_answer, self.cfg.null_score_threshold)

    def scores(self, source: Questions, decisions: dict[int, Decision]) -> dict[str, float]:
        """``em`` and ``f1`` (x100) over the questions that were judged; nothing where no answer is known (1.1 tests)."""
        pairs = []
        for question, decision in decisions.items():
            record = source.records[question]
            if record.answers or self.cfg.allow_no_answer:
                prediction = answer_text(source, question, decision)
                pairs.append(squad_score(prediction, [text for text, _ in record.answers], self.cfg.allow_no_answer))
        if not pairs:
            return {}
        em, f1 = (100.0 * sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        return {"em": round(em, 2), "f1": round(f1, 2)}
