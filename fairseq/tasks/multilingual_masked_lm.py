"""The task ``multilingual_masked_lm``: masked language modelling on several languages at once, as XLM-R was trained.

The data directory has ``dict.txt``, which all languages share, and one directory of binarized data for each language. In
training every language is drawn from anew in every epoch, so often that the languages' fractions of all blocks are p ^ alpha,
where p are their fractions of the data. A validation subset ``valid`` is followed by ``valid_en``, ``valid_fr``, ...
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from fairseq.data.concat_dataset import ConcatDataset
from fairseq.data.sampling import ResamplingDataset, SortDataset
from fairseq.data.wrappers import RawLabelDataset
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.file_io import split_paths
from fairseq.rng import legacy_permutation
from fairseq.tasks.configs import MultiLingualMaskedLMConfig
from fairseq.tasks.fairseq_task import register_task
from fairseq.tasks.masked_lm import MaskedLMTask

logger = logging.getLogger(__name__)


@register_task("multilingual_masked_lm", dataclass=MultiLingualMaskedLMConfig)
class MultiLingualMaskedLMTask(MaskedLMTask):
    """Masks, blocks and dictionary are those of ``masked_lm``; samples also have ``lang_id``, by the order of the names."""

    cfg: MultiLingualMaskedLMConfig

    def has_sharded_data(self, split: str) -> bool:
        """True: every epoch draws other blocks, in an order that depends on their lengths."""
        return True

    def languages(self, directory: str) -> list[str]:
        """Those of the configuration, or the names of the directories in ``directory``, sorted."""
        found = sorted(
            name
            for name in os.listdir(directory)
            if os.path.isdir(os.path.join(directory, name)) and not name.startswith(".")
        )
        if self.cfg.languages is None:
            if not found:
                raise DataNotFoundError(
                    f"{directory} has no directory of a language; a multilingual data directory holds dict.txt and one "
                    "directory for each language, each as fairseq-preprocess writes it"
                )
            return found
        wanted = sorted({name.strip() for name in self.cfg.languages.split(",") if name.strip()})
        missing = [name for name in wanted if name not in found]
        if missing or not wanted:
            raise ConfigError(
                f"task.languages names {', '.join(missing) or 'no language'}, but {directory} has {', '.join(found) or 'none'}"
            )
        return wanted

    reads_shards = True

    def _check_shard(self, directory: str, split: str) -> None:
        for language in self.languages(directory):
            self._load_lines(os.path.join(directory, language), split)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Load ``split`` of every language; all but the training set also under the name ``split_language``."""
        paths = split_paths(self.cfg.data)
        directory = paths[(epoch - 1) % len(paths)]
        languages = self.languages(directory)
        logger.info("%d languages with their ids: %s", len(languages), {lang: i for i, lang in enumerate(languages)})
        parts: list[Any] = []
        for number, language in enumerate(languages):
            blocks = self._load_dataset_split(split, epoch, combine, language)
            parts.append(self._samples(blocks, lang_id=RawLabelDataset([number] * len(blocks))))
        if split == self.cfg.train_subset:
            parts = self._resampled(languages, parts, epoch)
        else:
            self.datasets |= {f"{split}_{language}": part for language, part in zip(languages, parts, strict=True)}
        joined = ConcatDataset(parts)
        shuffle = legacy_permutation(len(joined), self._seed + epoch)
        self.datasets[split] = SortDataset(joined, sort_order=[shuffle, joined.sizes])

    def _resampled(self, languages: list[str], parts: list[Any], epoch: int) -> list[Any]:
        """Each language's blocks drawn anew; with replacement where it gets more than it has."""
        lengths = np.array([len(part) for part in parts], dtype=float)
        probabilities = self._get_sample_prob(lengths)
        ratios = (probabilities * lengths.sum()) / lengths
        for words, values in (("sample probability", probabilities), ("up/down sampling ratio", ratios)):
            shown = {name: f"{value:.4f}" for name, value in zip(languages, values, strict=True)}
            logger.info("%s by language: %s", words, shown)
        return [
            ResamplingDataset(part, size_ratio=ratio, seed=self._seed, epoch=epoch, replace=bool(ratio >= 1.0))
            for part, ratio in zip(parts, ratios.tolist(), strict=True)
        ]

    def _get_sample_prob(self, dataset_lens: np.ndarray) -> np.ndarray:
        """(L,) blocks by language -> (L,) probabilities, smoothed: small languages are drawn more often than they occur."""
        fractions = dataset_lens / dataset_lens.sum()
        smoothed = fractions**self.cfg.multilang_sampling_alpha
        return smoothed / smoothed.sum()

    def validation_subsets(self, names: list[str]) -> list[str]:
        """Each of ``names`` followed by its languages; the loss on all of them together decides which model is best."""
        expanded = []
        for name in names:
            expanded += [name, *sorted(other for other in self.datasets if other.startswith(f"{name}_"))]
        return list(dict.fromkeys(expanded))
