"""The tasks of multiple choice: ``sentence_ranking``, ``multiple_choice`` and ``commonsense_qa``.

``sentence_ranking`` (RACE): ``DATA/input0`` (contexts, with ``dict.txt``), ``DATA/input1`` ... ``DATA/inputK``
(candidates), ``DATA/label/{split}.label`` (the right one, from 0, one per line). Candidate k of an example is the
sequence ``[init_token] candidate [separator_token] context``: the candidate first, so that shortening cuts the
context.

``multiple_choice`` (RACE, SWAG) has the same layout; ``commonsense_qa`` has its own, ``DATA/{split}.jsonl`` beside
``DATA/dict.txt``, whose texts are encoded with the run's ``--bpe``: ``[init_token] Q: question </s> A: answer </s>``.

A batch: ``{"id" (B), "net_input1" ... "net_inputK": {"src_tokens" (B, T), "src_lengths" (B)}, "target" (B),
"nsentences", "ntokens" (of the first candidate)}``. B batch, T tokens, K candidates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders import build_bpe
from fairseq.data.wrappers import ListDataset, PrependTokenDataset, RawLabelDataset, TruncateDataset
from fairseq.errors import DataError
from fairseq.finetune.choices import read_questions
from fairseq.finetune.sentences import (
    check_not_empty,
    check_same_length,
    choice_labels,
    load_dictionary,
    model_input,
    require_sentences,
)
from fairseq.tasks.configs import CommonsenseQAConfig, MultipleChoiceConfig, SentenceRankingConfig
from fairseq.tasks.fairseq_task import register_task
from fairseq.tasks.sentence_task import MASK, SentenceTask, check_num_classes, followed


@register_task("sentence_ranking", dataclass=SentenceRankingConfig)
class SentenceRankingTask(SentenceTask):
    """Ranking of candidates by a head with one output."""

    cfg: SentenceRankingConfig
    criterion_name = "sentence_ranking"

    def __init__(self, cfg: Any, dictionary: Dictionary) -> None:
        super().__init__(cfg, dictionary)
        check_num_classes(cfg, "the number of candidates")

    @classmethod
    def load_dictionary(cls, args: Any, filename: str, source: bool = True) -> Dictionary:  # type: ignore[override]
        """The dictionary of the file with ``<mask>`` added."""
        return load_dictionary(filename, MASK)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> SentenceRankingTask:
        """The task with the dictionary of ``DATA/input0``, or of ``DATA``."""
        check_num_classes(cfg, "the number of candidates")
        return cls(cfg, cls.load_input_dictionary(cfg, "input0", ""))

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> Any:
        """Load ``split``, the same in every epoch; without a label file it has no targets."""
        cfg = self.cfg
        names = [f"input{k}" for k in range(cfg.num_classes + 1)]
        inputs = {name: require_sentences(cfg.data, name, split, self.dictionary, combine) for name in names}
        check_same_length(cfg.data, split, inputs)
        check_not_empty(cfg.data, split, inputs)
        context, *options = inputs.values()
        sequences = [self.join(context, option) for option in options]
        target = choice_labels(cfg.data, split, cfg.num_classes, len(context), combine)
        return self.keep_choices(split, sequences, target)

    def join(self, context: Any, option: Any) -> Any:
        """The sequences of one candidate, before they are shortened."""
        option = PrependTokenDataset(option, self.cfg.init_token)
        if self.cfg.max_option_length is not None:
            option = TruncateDataset(option, self.cfg.max_option_length)
        return ConcatSentencesDataset(option, PrependTokenDataset(context, self.cfg.separator_token))

    def keep_choices(self, split: str, sequences: list[Any], target: Any) -> Any:
        """Make the dataset of ``split`` from the sequences of every candidate; batches follow the longest of them."""
        sequences = [self.shorten(tokens, split) for tokens in sequences]
        members = {
            f"net_input{k}": model_input(tokens, self.dictionary, self.token_types)
            for k, tokens in enumerate(sequences, start=1)
        }
        longest = np.maximum.reduce([np.asarray(tokens.sizes) for tokens in sequences])
        return self.keep(split, members, target, sequences[0], longest)

    def add_head(self, model: Any) -> None:
        name = followed(getattr(self.cfg, "ranking_head_name", None), "sentence_classification_head")
        model.register_classification_head(name, num_classes=1)


@register_task("multiple_choice", dataclass=MultipleChoiceConfig)
class MultipleChoiceTask(SentenceRankingTask):
    """Multiple choice; see the module for its files."""

    cfg: MultipleChoiceConfig  # type: ignore[assignment]

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> Any:
        path = os.path.join(self.cfg.data, f"{split}.jsonl")
        if not os.path.isfile(path):
            return super().load_dataset(split, epoch, combine, task_cfg, **kwargs)
        examples = list(read_questions(Path(path), self.cfg.num_classes))
        labels = [int(example.label) for example in examples if example.label is not None]
        if not examples:
            raise DataError(f"{path} holds no questions")
        if len(labels) not in (0, len(examples)):
            raise DataError(f"{path}: only {len(labels)} of its {len(examples)} questions have an answerKey")
        bpe = build_bpe(self.bpe_config)
        rows = [[self._encode(bpe, text) for text in example.texts] for example in examples]  # question, then answers
        sequences = []
        for choice in range(1, self.cfg.num_classes + 1):
            items = [torch.cat([row[0], row[choice]]) for row in rows]
            sizes = np.array([len(item) for item in items])
            sequences.append(PrependTokenDataset(ListDataset(items, sizes), self.cfg.init_token))
        return self.keep_choices(split, sequences, RawLabelDataset(labels) if labels else None)

    def join(self, context: Any, option: Any) -> Any:
        if not self.cfg.context_first:
            return super().join(context, option)
        return ConcatSentencesDataset(
            PrependTokenDataset(context, self.cfg.init_token), PrependTokenDataset(option, self.cfg.separator_token)
        )

    def _encode(self, bpe: Any, text: str) -> torch.Tensor:
        pieces = text if bpe is None else bpe.encode(text)
        return self.dictionary.encode_line(pieces, append_eos=True, add_if_not_exist=False).long()


@register_task("commonsense_qa", dataclass=CommonsenseQAConfig)
class CommonsenseQATask(MultipleChoiceTask):
    """``multiple_choice`` under its old name, with five choices."""
