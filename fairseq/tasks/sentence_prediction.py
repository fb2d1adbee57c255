"""The task ``sentence_prediction``: a label, several labels or numbers for a sentence or a pair of sentences.

Files: ``DATA/input0`` (and ``DATA/input1``) with ``dict.txt`` and the splits, ``DATA/label`` likewise for classes, or
``DATA/label/{split}.label`` with numbers for regression. An example is ``[init_token] a [separator_token] b``.

A batch: ``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "nsentences", "ntokens", "target"}``; target is
int64 (B, 1) class indices, float32 (B, K) numbers, or float32 (B, K) zeros and ones for several labels. B batch, T tokens,
K classes.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.labels import class_labels, regression_targets
from fairseq.data.pad_dataset import RightPadDataset
from fairseq.data.sentence_pairs import (
    check_not_empty,
    check_same_length,
    load_dictionary,
    load_sentences,
    model_input,
    require_sentences,
)
from fairseq.data.token_edits import PrependTokenDataset, RollDataset
from fairseq.errors import ConfigError
from fairseq.tasks.configs import SentencePredictionConfig
from fairseq.tasks.registration import register_task
from fairseq.tasks.sentence_task import MASK, SentenceTask, check_num_classes, followed, omits_mask

__all__ = ["SentencePredictionConfig", "SentencePredictionTask"]

logger = logging.getLogger(__name__)


@register_task("sentence_prediction", dataclass=SentencePredictionConfig)
class SentencePredictionTask(SentenceTask):
    """Classification and regression; ``label_dictionary`` names the classes (class k is its symbol ``nspecial + k``)."""

    cfg: SentencePredictionConfig
    criterion_name = "sentence_prediction"

    def __init__(self, cfg: Any, data_dictionary: Dictionary, label_dictionary: Dictionary | None = None) -> None:
        super().__init__(cfg, data_dictionary)
        check_num_classes(cfg, "the number of classes (of values, for regression)")
        self.regression_target = bool(followed(getattr(cfg, "regression_target", None), False))
        self.multi_label = bool(getattr(cfg, "multi_label", False))
        if self.regression_target and self.multi_label:
            raise ConfigError("regression_target and multi_label exclude each other: choose one")
        self._label_dictionary = data_dictionary if label_dictionary is None else label_dictionary

    @classmethod
    def load_dictionary(cls, filename: str) -> Dictionary:  # type: ignore[override]
        """The dictionary of the file with ``<mask>`` added."""
        return load_dictionary(filename, MASK)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> SentencePredictionTask:
        """The task with the dictionaries of ``DATA/input0`` and ``DATA/label``; regression has no labels to name."""
        check_num_classes(cfg, "the number of classes (of values, for regression)")
        data_dictionary = cls.load_input_dictionary(cfg, "input0", "")  # beside published models it is alone
        if followed(getattr(cfg, "regression_target", None), False):
            return cls(cfg, data_dictionary, data_dictionary)
        label_dictionary = load_dictionary(
            os.path.join(cfg.data, "label", "dict.txt"), None if omits_mask(cfg) else MASK
        )
        logger.info("[label] dictionary: %d types", len(label_dictionary))
        return cls(cfg, data_dictionary, label_dictionary)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> Any:
        """Load ``split``, the same in every epoch; without label files it has no targets.

        Raises DataNotFoundError for missing files, DataError naming file and line for mistakes in them.
        """
        cfg = self.cfg
        inputs = {"input0": require_sentences(cfg.data, "input0", split, self.dictionary, combine)}
        second = load_sentences(cfg.data, "input1", split, self.dictionary, combine)
        if second is not None:
            inputs["input1"] = second
            check_same_length(cfg.data, split, inputs)
        check_not_empty(cfg.data, split, inputs)
        tokens = self.shorten(self.join(*inputs.values()), split)
        net_input = model_input(tokens, self.dictionary)
        if cfg.add_prev_output_tokens:
            net_input["prev_output_tokens"] = RightPadDataset(RollDataset(tokens, 1), pad_idx=self.dictionary.pad())
        members = {"net_input": net_input}
        target = self._targets(split, len(tokens), combine)
        if target is not None:
            members["target"] = target
        return self.keep(split, members, tokens, tokens.sizes)

    def join(self, first: Any, second: Any = None) -> Any:
        """The sequences of the examples, before they are shortened."""
        tokens = PrependTokenDataset(first, self.cfg.init_token)
        if second is None:
            return tokens
        return ConcatSentencesDataset(tokens, PrependTokenDataset(second, self.cfg.separator_token))

    def _targets(self, split: str, examples: int, combine: bool) -> Any:
        cfg = self.cfg
        if self.regression_target:
            return regression_targets(cfg.data, split, cfg.num_classes, examples, combine)
        return class_labels(
            cfg.data, split, self.label_dictionary, cfg.num_classes, examples, combine, self.multi_label
        )

    def add_head(self, model: Any) -> None:
        name = followed(self.cfg.classification_head_name, "sentence_classification_head")
        model.register_classification_head(name, num_classes=self.cfg.num_classes)

    @property
    def label_dictionary(self) -> Dictionary:
        return self._label_dictionary
