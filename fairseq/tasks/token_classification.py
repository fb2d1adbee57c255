"""The task ``token_classification``: a label for every word, as in named-entity recognition.

Files: see `fairseq.finetune.conll`. A batch is described at
`fairseq.finetune.words.TokenLabelsDataset.collater`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq.criterions.entity_scores import accuracy, entity_scores
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError
from fairseq.finetune.conll import load_conll, read_columns
from fairseq.finetune.sentences import check_ids, load_dictionary
from fairseq.finetune.words import TokenLabelsDataset, unlabelled, word_labels
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
        source = load_conll(self.cfg.data, split, self.label_dictionary)
        check_ids(f"{self.cfg.data}/input0/{split}", source.pieces, self.dictionary)
        dataset = TokenLabelsDataset(source, self.dictionary, self.cfg.max_positions, split)
        logger.info("Loaded %s with #samples: %d (%d sentences)", split, len(dataset), len(source.pieces))
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
            if self.cfg.predictions:
                path = self.cfg.predictions.replace("{subset}", subset)
                self.write_predictions(path, self.windows_of(subset), found)
            _, targets, predictions = self.label_names(found)
            return self.scores(targets, predictions)

        return finish

    # ---- predictions of files and splits --------------------------------------------------------------------------

    def file_examples(self, path: str, bpe: Any, word_column: int = 0) -> TokenLabelsDataset:
        """The words of a file of columns, of which only ``word_column`` is read."""
        words = [sentence.words for sentence in read_columns(Path(path), word_column, None)]
        source = unlabelled(words, bpe, self.dictionary)
        return TokenLabelsDataset(source, self.dictionary, self.cfg.max_positions)

    def split_examples(self, data: str, split: str) -> TokenLabelsDataset:
        """The words of a preprocessed ``split`` of the directory ``data``, with their labels."""
        source = load_conll(data, split, self.label_dictionary)
        return TokenLabelsDataset(source, self.dictionary, self.cfg.max_positions)

    def decode(self, examples: TokenLabelsDataset, sample: dict[str, Any], logits: Tensor) -> Tensor:
        """Sentence, word, target and prediction of every word of a batch (N, 4)."""
        return word_labels(sample, logits)

    def write_predictions(self, path: str, examples: TokenLabelsDataset, found: Iterable[Tensor]) -> int:
        """Write ``word target prediction`` per line (``word prediction`` where labels are not known) of ``found``, what
        `decode` gave of all batches; returns the number of sentences."""
        sentences, targets, predictions = self.label_names(list(found))
        source = examples.source
        known = targets if source.labels is not None else None
        write_labels(path, [source.words[sentence] for sentence in sentences], known, predictions)
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
            targets[-1].append(self.class_names[target] if target >= 0 else "")  # not known
            predictions[-1].append(self.class_names[prediction])
        return sentences, targets, predictions

    def scores(self, targets: Labels, predictions: Labels) -> dict[str, float]:
        values = {"accuracy": accuracy(targets, predictions)}
        if self.cfg.entity_scores:
            values.update(entity_scores(targets, predictions))
        return {name: round(value, 2) for name, value in values.items()}
