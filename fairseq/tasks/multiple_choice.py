"""The tasks ``multiple_choice`` and ``commonsense_qa``: which of K answers is right.

Two layouts: that of ``sentence_ranking`` (RACE, SWAG), or CommonsenseQA's own ``DATA/{split}.jsonl`` beside
``DATA/dict.txt``, whose texts are encoded with the run's ``--bpe``: ``[init_token] Q: question </s> A: answer </s>``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch

from fairseq.data.attributes import RawLabelDataset
from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.encoders import build_bpe
from fairseq.data.list_dataset import ListDataset
from fairseq.data.token_edits import PrependTokenDataset
from fairseq.errors import DataError
from fairseq.tasks.configs import CommonsenseQAConfig, MultipleChoiceConfig
from fairseq.tasks.registration import register_task
from fairseq.tasks.sentence_ranking import SentenceRankingTask

__all__ = ["CommonsenseQATask", "MultipleChoiceTask"]


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
        choices, labels = self._read_questions(path)
        sequences = []
        for items in choices:
            sizes = np.array([len(item) for item in items])
            sequences.append(PrependTokenDataset(ListDataset(items, sizes), self.cfg.init_token))
        return self.keep_choices(split, sequences, RawLabelDataset(labels) if labels else None)

    def join(self, context: Any, option: Any) -> Any:
        if not self.cfg.context_first:
            return super().join(context, option)
        return ConcatSentencesDataset(
            PrependTokenDataset(context, self.cfg.init_token), PrependTokenDataset(option, self.cfg.separator_token)
        )

    def _read_questions(self, path: str) -> tuple[list[list[torch.Tensor]], list[int]]:
        """Ids of question and answer, for every choice a list over the questions; and the labels, if there are any."""
        bpe = build_bpe(self.bpe_config)
        choices: list[list[torch.Tensor]] = [[] for _ in range(self.cfg.num_classes)]
        labels: list[int] = []
        with open(path, encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                question, answers, label = _question(line, self.cfg.num_classes, f"{path}: line {number}")
                stem = self._encode(bpe, f"Q: {question}")
                for items, answer in zip(choices, answers, strict=True):
                    items.append(torch.cat([stem, self._encode(bpe, f"A: {answer}")]))
                labels += [] if label is None else [label]
        if not choices[0]:
            raise DataError(f"{path} holds no questions")
        if len(labels) not in (0, len(choices[0])):
            raise DataError(f"{path}: only {len(labels)} of its {len(choices[0])} questions have an answerKey")
        return choices, labels

    def _encode(self, bpe: Any, text: str) -> torch.Tensor:
        pieces = text if bpe is None else bpe.encode(text)
        return self.dictionary.encode_line(pieces, append_eos=True, add_if_not_exist=False).long()


@register_task("commonsense_qa", dataclass=CommonsenseQAConfig)
class CommonsenseQATask(MultipleChoiceTask):
    """``multiple_choice`` under its old name, with five choices."""


def _question(line: str, num_classes: int, where: str) -> tuple[str, list[str], int | None]:
    """Question, answers and the index of the right one (None without ``answerKey``) of a line of CommonsenseQA."""
    try:
        entry = json.loads(line)
        question = str(entry["question"]["stem"])
        answers = [str(choice["text"]) for choice in entry["question"]["choices"]]
        key = entry.get("answerKey") or None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{where} is no question with stem and choices, as CommonsenseQA's files have it") from None
    if len(answers) != num_classes:
        raise DataError(f"{where} has {len(answers)} choices, but num_classes is {num_classes}")
    if key is None:
        return question, answers, None
    label = ord(key) - ord("A") if isinstance(key, str) and len(key) == 1 else -1
    if not 0 <= label < num_classes:
        raise DataError(f"{where}: answerKey {key!r} names none of the {num_classes} choices")
    return question, answers, label
