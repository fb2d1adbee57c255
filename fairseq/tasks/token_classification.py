"""The task ``token_classification``: a label for every word, as in named-entity recognition.

Files: see `fairseq.finetune.conll`. A batch is described at
`fairseq.finetune.words.TokenLabelsDataset.collater`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.criterions.entity_scores import accuracy, entity_scores
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.finetune.conll import ConllSplit, read_columns
from fairseq.finetune.sentences import highest_id, load_dictionary
from fairseq.finetune.words import TokenLabelsDataset, word_labels
from fairseq.models.roberta.inference import labels, tags
from fairseq.tasks.configs import TokenClassificationConfig
from fairseq.tasks.fairseq_task import register_task
from fairseq.tasks.prediction import write_labels
from fairseq.tasks.sentence_task import SentenceTask

__all__ = ["TokenClassificationConfig", "TokenClassificationTask"]

logger = logging.getLogger(__name__)

Labels = list[list[str]]


@register_task("token_classification", dataclass=TokenClassificationConfig)
class TokenClassificationTask(SentenceTask):
    """Labelling words; ``label_dictionary`` names the classes (class k is its symbol ``nspecial + k``).

    Reports ``accuracy`` (x100) of words and, with ``entity_scores``, ``precision``, ``recall`` and ``f1`` (x100) of entities.
    """

    cfg: TokenClassificationConfig
    criterion_name = "token_classification"

    def __init__(self, cfg: Any, dictionary: Dictionary, label_dictionary: Dictionary) -> None:
        super().__init__(cfg, dictionary)
        self.head_name: str = cfg.head_name
        self.label_dictionary = label_dictionary
        self.class_names = label_dictionary.symbols[label_dictionary.nspecial :]
        if not self.class_names:
            raise ConfigError(f"{cfg.data}/label/dict.txt lists no labels")

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> TokenClassificationTask:
        """The task with the dictionaries of ``DATA/input0`` and ``DATA/label``."""
        dictionary = cls.load_input_dictionary(cfg, "input0")
        labels = load_dictionary(os.path.join(cfg.data, "label", "dict.txt"), None)
        logger.info("[label] dictionary: %d types", len(labels))
        return cls(cfg, dictionary, labels)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> Any:
        """Load ``split``, the same in every epoch. Raises DataNotFoundError and DataError."""
        source = ConllSplit(self.cfg.data, split, self.label_dictionary)
        if highest_id(source.sentences) >= len(self.dictionary):
            raise DataError(
                f"{self.cfg.data}/input0/{split} holds the id {highest_id(source.sentences)}, but the dictionary has only "
                f"{len(self.dictionary)} symbols: it was preprocessed with another dict.txt"
            )
        dataset = TokenLabelsDataset(source, self.dictionary, self.cfg.max_positions, split)
        logger.info("Loaded %s with #samples: %d (%d sentences)", split, len(dataset), len(source.sentences))
        self.datasets[split] = self.ordered(dataset, dataset.sizes)
        return self.datasets[split]

    def add_head(self, model: Any) -> None:
        model.register_token_head(self.head_name, len(self.class_names))

    # ---- from logits to labels ----------------------------------------------------------------------------------

    def word_labels(self, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """Sentence, word, target and prediction of every word of a batch (N, 4)."""
        return word_labels(sample, logits)

    def label_scores(self, subset: str) -> Callable[[list[Tensor]], dict[str, float]]:
        """A function from all predictions of a pass over ``subset`` to its scores; it also writes the predictions."""

        def finish(found: list[Tensor]) -> dict[str, float]:
            sentences, targets, predictions = self.label_names(found)
            if self.cfg.predictions:
                words = _unwrapped(self.datasets[subset]).source.words
                path = self.cfg.predictions.replace("{subset}", subset)
                write_labels(path, [words[sentence] for sentence in sentences], targets, predictions)
            return self.scores(targets, predictions)

        return finish

    def predict_file(self, hub: Any, path: str, output: str, batch_size: int = 32, word_column: int = 0) -> int:
        """Label the words of a file of columns with the loaded model ``hub``; returns the number of sentences.

        Only ``word_column`` is read; ``output`` gets ``word label`` a line, an empty line after a sentence.
        """
        words = [sentence.words for sentence in read_columns(Path(path), word_column, None)]
        write_labels(output, words, None, tags(hub, words, batch_size))
        return len(words)

    def predict_split(self, hub: Any, data: str, split: str, output: str, batch_size: int = 32) -> int:
        """As `predict_file`, for a preprocessed ``split`` of the directory ``data``; a line has word, target, prediction."""
        source = ConllSplit(data, split, self.label_dictionary)
        dataset = TokenLabelsDataset(source, self.dictionary, self.cfg.max_positions)
        sentences, targets, predictions = self.label_names(list(labels(hub, dataset, batch_size)))
        write_labels(output, [source.words[sentence] for sentence in sentences], targets, predictions)
        return len(sentences)

    def label_names(self, found: Sequence[Tensor]) -> tuple[list[int], Labels, Labels]:
        """Numbers of the sentences, and the names of targets and predictions of their words, in the order of the file."""
        rows = torch.cat(list(found)).tolist()
        sentences: list[int] = []
        targets: Labels = []
        predictions: Labels = []
        for sentence, _, target, prediction in sorted(rows):
            if not sentences or sentences[-1] != sentence:
                sentences.append(sentence)
                targets.append([])
                predictions.append([])
            targets[-1].append(self.class_names[target])
            predictions[-1].append(self.class_names[prediction])
        return sentences, targets, predictions

    def scores(self, targets: Labels, predictions: Labels) -> dict[str, float]:
        values = {"accuracy": accuracy(targets, predictions)}
        if self.cfg.entity_scores:
            values.update(entity_scores(targets, predictions))
        return {name: round(value, 2) for name, value in values.items()}


def _unwrapped(dataset: Any) -> TokenLabelsDataset:
    while not isinstance(dataset, TokenLabelsDataset):
        dataset = dataset.dataset
    return dataset
