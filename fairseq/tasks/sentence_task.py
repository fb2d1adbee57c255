"""`SentenceTask`, what the tasks on sentences have in common, and the task ``sentence_prediction``.

The latter: a label, several labels or numbers for a sentence or a pair of sentences. Files: ``DATA/input0`` (and
``DATA/input1``) with ``dict.txt`` and the splits, ``DATA/label`` likewise for classes, or
``DATA/label/{split}.label`` with numbers for regression. An example is ``[init_token] a [separator_token] b``.

A batch: ``{"id" (B), "net_input": {"src_tokens" (B, T), "src_lengths" (B)}, "nsentences", "ntokens", "target"}``;
target is int64 (B, 1) class indices, float32 (B, K) numbers, or float32 (B, K) zeros and ones for several labels. B
batch, T tokens, K classes.
"""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import Any

from omegaconf import DictConfig, open_dict

from fairseq.data.concat_dataset import ConcatSentencesDataset
from fairseq.data.datasets import NestedDictionaryDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.sampling import GroupByLengthDataset, SortDataset
from fairseq.data.wrappers import (
    IdDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    RollDataset,
    maybe_shorten_dataset,
)
from fairseq.dataclass.base import is_interpolation
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.finetune.sentences import (
    check_not_empty,
    check_same_length,
    class_labels,
    load_dictionary,
    load_sentences,
    model_input,
    regression_targets,
    require_sentences,
)
from fairseq.finetune.words import WindowDataset
from fairseq.rng import legacy_permutation
from fairseq.tasks.configs import SentencePredictionConfig
from fairseq.tasks.fairseq_task import FairseqTask, register_task

# The name under which the original logs, so that its lines keep their looks.
logger = logging.getLogger("fairseq.tasks.sentence_prediction")

MASK = "<mask>"


class SentenceTask(FairseqTask):
    """A task on whole sentences; ``cfg`` is a `SentenceTaskConfig` or anything with its attributes.

    ``mask_idx`` is the id of ``<mask>``, as in pretraining, so that ``fill_mask`` works on fine-tuned models too.
    """

    criterion_name = ""
    """The criterion that the task needs."""

    def __init__(self, cfg: Any, dictionary: Dictionary) -> None:
        super().__init__(cfg)
        if getattr(cfg, "group_by_length", False) and cfg.no_shuffle:
            raise ConfigError("no_shuffle and group_by_length exclude each other: choose one")
        if self.token_types and cfg.shorten_method == "random_crop":
            raise ConfigError("token_types and shorten_method=random_crop exclude each other: choose truncate")
        self.dictionary = dictionary
        self.mask_idx = len(dictionary) if omits_mask(cfg) else dictionary.add_symbol(MASK)

    @classmethod
    def load_input_dictionary(cls, cfg: Any, *folders: str) -> Dictionary:
        """The dictionary of the first of ``folders`` in the data directory that has one, with ``<mask>`` unless omitted."""
        if not os.path.isdir(cfg.data):
            raise DataNotFoundError(
                f"data directory not found: {cfg.data}; give the directory that holds input0 and label"
            )
        paths = [os.path.join(cfg.data, folder, "dict.txt") for folder in folders]
        path = next((path for path in paths if os.path.isfile(path)), paths[0])
        dictionary = load_dictionary(path, None if omits_mask(cfg) else MASK)
        logger.info("[input] dictionary: %d types", len(dictionary))
        return dictionary

    def has_sharded_data(self, split: str) -> bool:
        return False

    def shorten(self, tokens: Any, split: str) -> Any:
        """``tokens`` cut to ``max_positions`` as the configuration says."""
        cfg = self.cfg
        return maybe_shorten_dataset(
            tokens, split, cfg.shorten_data_split_list, cfg.shorten_method, cfg.max_positions, self.seed
        )

    def keep(self, split: str, inputs: dict[str, Any], target: Any, counted: Any, sizes: Any) -> Any:
        """Make ``inputs`` and ``target`` (None: not known) the dataset of ``split``, with ids and the counts of sentences
        and of ``counted`` tokens."""
        nested = NestedDictionaryDataset(
            {
                "id": IdDataset(),
                **inputs,
                **({} if target is None else {"target": target}),
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(counted, reduce=True),
            },
            sizes=[sizes],
        )
        self.datasets[split] = self.ordered(nested, sizes)
        logger.info("Loaded %s with #samples: %d", split, len(nested))
        return self.datasets[split]

    def ordered(self, dataset: Any, sizes: Any) -> Any:
        """``dataset`` in the order in which batches are cut: by length if asked for, else at random (or not at all)."""
        if getattr(self.cfg, "group_by_length", False):
            return GroupByLengthDataset(dataset, sizes, self.seed)
        if self.cfg.no_shuffle:
            return dataset
        # Drawn from the seed, the same for every split and epoch.
        return SortDataset(dataset, sort_order=[legacy_permutation(len(dataset), self.seed)])

    def windows_of(self, split: str) -> Any:
        """The `WindowDataset` of ``split``, without what orders it."""
        dataset = self.datasets[split]
        while not isinstance(dataset, WindowDataset):
            dataset = dataset.dataset
        return dataset

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """The model, made for ``max_positions`` of the task, with the task's head."""
        with open_dict(cfg) if isinstance(cfg, DictConfig) else nullcontext():
            cfg.max_positions = self.cfg.max_positions
        model = super().build_model(cfg, from_checkpoint)
        self.add_head(model)
        return model

    def add_head(self, model: Any) -> None:
        """Register the head that the criterion reads."""
        raise NotImplementedError

    def build_criterion(self, cfg: Any) -> Any:
        criterion = super().build_criterion(cfg)
        name = getattr(cfg, "_name", None)
        if name == "masked_lm" or (name in ("sentence_prediction", "sentence_ranking") and name != self.criterion_name):
            raise ConfigError(
                f"the criterion {name} does not fit the task: choose --criterion {self.criterion_name} "
                f"(criterion={self.criterion_name})"
            )
        return criterion

    @property
    def token_types(self) -> bool:
        """Whether models are given token types; the configurations of old plugins do not know of them."""
        return bool(getattr(self.cfg, "token_types", False))

    @property
    def seed(self) -> int:
        # A configuration object made by hand still holds the reference to common.seed; 1 is its default.
        return 1 if is_interpolation(self.cfg.seed) else self.cfg.seed

    def max_positions(self) -> int:
        return self.cfg.max_positions

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary


def omits_mask(cfg: Any) -> bool:
    """Whether ``<mask>`` stays out of the dictionary; the option had another name before October 2022."""
    return bool(getattr(cfg, "omit_mask", False) or getattr(cfg, "omit_mask_and_pad", False))


def check_num_classes(cfg: Any, what: str) -> None:
    """Raise ConfigError when the number of classes was not given."""
    if not isinstance(cfg.num_classes, int) or cfg.num_classes < 1:
        raise ConfigError(
            f"task.num_classes (--num-classes) must be set to {what}, at least 1, but is {cfg.num_classes}"
        )


def followed(value: Any, default: Any) -> Any:
    """``value``, or ``default`` for a reference to another section that was never resolved (configurations by hand)."""
    return default if value is None or is_interpolation(value) else value


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
        net_input = model_input(tokens, self.dictionary, self.token_types)
        if cfg.add_prev_output_tokens:
            net_input["prev_output_tokens"] = RightPadDataset(RollDataset(tokens, 1), pad_idx=self.dictionary.pad())
        target = self._targets(split, len(tokens), combine)
        return self.keep(split, {"net_input": net_input}, target, tokens, tokens.sizes)

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
