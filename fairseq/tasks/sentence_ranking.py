"""The task ``sentence_ranking``: which of K candidates goes with a context (RACE).

Files: ``DATA/input0`` (contexts, with ``dict.txt``), ``DATA/input1`` ... ``DATA/inputK`` (candidates),
``DATA/label/{split}.label`` (the right one, from 0, a line). Candidate k of an example is the sequence
``[init_token] candidate [separator_token] context``: the candidate first, so that shortening cuts the context.

A batch: ``{"id" (B), "net_input1" ... "net_inputK": {"src_tokens" (B, T), "src_lengths" (B)}, "target" (B), "nsentences",
"ntokens" (of the first candidate)}``. B batch, T tokens, K candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.labels import choice_labels
from fairseq.data.sentence_pairs import (
    check_not_empty,
    check_same_length,
    load_dictionary,
    model_input,
    require_sentences,
)
from fairseq.data.shorten_dataset import TruncateDataset
from fairseq.data.token_edits import PrependTokenDataset
from fairseq.tasks.configs import SentenceRankingConfig
from fairseq.tasks.registration import register_task
from fairseq.tasks.sentence_task import MASK, SentenceTask, check_num_classes, followed

__all__ = ["SentenceRankingConfig", "SentenceRankingTask"]


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
        """Make the data set of ``split`` from the sequences of every candidate; batches follow the longest of them."""
        sequences = [self.shorten(tokens, split) for tokens in sequences]
        members: dict[str, Any] = {
            f"net_input{k}": model_input(tokens, self.dictionary) for k, tokens in enumerate(sequences, start=1)
        }
        if target is not None:
            members["target"] = target
        longest = np.maximum.reduce([np.asarray(tokens.sizes) for tokens in sequences])
        return self.keep(split, members, sequences[0], longest)

    def add_head(self, model: Any) -> None:
        name = followed(getattr(self.cfg, "ranking_head_name", None), "sentence_classification_head")
        model.register_classification_head(name, num_classes=1)
