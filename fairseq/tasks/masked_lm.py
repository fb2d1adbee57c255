"""The task ``masked_lm``: predict hidden tokens of a binarized corpus.

From the corpus to a sample: lines -> (shortened) -> blocks of ``tokens_per_sample - 1`` tokens -> ``<s>`` in front ->
masked sources and targets -> right padding -> ``{"id", "net_input": {"src_tokens" (B, T), "src_lengths" (B)},
"target" (B, T), "nsentences", "ntokens"}``, sorted by length with ties in random order.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from fairseq.data.datasets import FairseqDataset, NestedDictionaryDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.data.masking import MaskTokensDataset, get_whole_word_mask
from fairseq.data.pairs import PairTypesDataset, SentencePairDataset
from fairseq.data.sampling import SortDataset
from fairseq.data.shards import check_dictionary, directory_not_found
from fairseq.data.token_block_dataset import TokenBlockDataset
from fairseq.data.wrappers import (
    IdDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    maybe_shorten_dataset,
)
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.file_io import split_paths
from fairseq.overrides import supports
from fairseq.rng import legacy_permutation
from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.fairseq_task import FairseqTask, register_task

__all__ = ["MaskedLMConfig", "MaskedLMTask"]

logger = logging.getLogger(__name__)

MASK = "<mask>"
Blocks = TokenBlockDataset | SentencePairDataset | PrependTokenDataset
_CHECKED_TOKENS = 1 << 16


@register_task("masked_lm", dataclass=MaskedLMConfig)
class MaskedLMTask(FairseqTask):
    """Masked language modelling; ``cfg`` is a `MaskedLMConfig` or anything with its attributes.

    ``mask_idx`` is the id at masked positions: that of ``<mask>``, which is added to ``dictionary`` (loaded from the
    first data directory when it is None), or with ``omit_mask`` the id after the last symbol.
    """

    cfg: MaskedLMConfig
    predicts_tokens = True
    _gives_types = True  # of sentence pairs, until there is a model without types

    def __init__(self, cfg: Any, dictionary: Dictionary | None = None) -> None:
        super().__init__(cfg)
        self.dictionary = self.load_dict(cfg) if dictionary is None else dictionary
        # Fork checkpoints from before October 2022 call the option omit_mask_and_pad.
        omit_mask = getattr(cfg, "omit_mask", False) or getattr(cfg, "omit_mask_and_pad", False)
        self.mask_idx = len(self.dictionary) if omit_mask else self.dictionary.add_symbol(MASK)
        if getattr(cfg, "token_types", None) is not None:
            if cfg.token_types and cfg.pair_mode == "none":
                raise ConfigError("token_types tell the two sentences of a pair apart: set pair_mode=consecutive, too")
            self._gives_types = cfg.token_types

    @classmethod
    def setup_task(cls, cfg: Any, bpe: Any = None, **kwargs: Any) -> MaskedLMTask:
        """The task with the dictionary of the first data directory; ``bpe`` is for whole-word masking."""
        task = cls(cfg, cls.load_dict(cfg))
        task.bpe_config = bpe
        return task

    @classmethod
    def load_dict(cls, cfg: Any) -> Dictionary:
        """``dict.txt`` of the first data directory, without the mask symbol."""
        directory = split_paths(cfg.data)[0]
        path = os.path.join(directory, "dict.txt")
        if not os.path.isdir(directory):
            raise directory_not_found(directory, cfg.data)
        if not os.path.exists(path):
            raise DataNotFoundError(
                f"dictionary not found: {path}; the data directory must hold the dict.txt that fairseq-preprocess wrote"
            )
        dictionary = Dictionary.load(path)
        logger.info("dictionary: %d types", len(dictionary))
        return dictionary

    # ---- data ---------------------------------------------------------------------------------------------------

    reads_shards = True
    """Directory k of ``cfg.data`` has the splits of epoch k, as `load_dataset` reads them."""

    def check_shards(self, split: str) -> None:
        """Raise what an epoch would: for a directory without ``split``, damaged data, and another dictionary."""
        if not supports(self, "reads_shards", "load_dataset", "_load_dataset_split"):
            return
        first, *others = split_paths(self.cfg.data)
        for directory in others:
            if not os.path.isdir(directory):
                raise directory_not_found(directory, self.cfg.data)
            check_dictionary(directory, self.dictionary, first)
            self._check_shard(directory, split)

    def _check_shard(self, directory: str, split: str) -> None:
        self._load_lines(directory, split)

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Load ``split``; with several data directories, the one whose turn ``epoch`` (from 1) is.

        Raises DataNotFoundError for a missing split, DataError for data that is damaged, empty or of another dictionary.
        """
        blocks = self._load_dataset_split(split, epoch, combine)
        shuffle = legacy_permutation(len(blocks), self._seed)
        self.datasets[split] = SortDataset(self._samples(blocks), sort_order=[shuffle, blocks.sizes])

    def _samples(self, blocks: Blocks, **more: FairseqDataset) -> NestedDictionaryDataset:
        """Masked samples of ``blocks``, in their order; ``more`` are further entries of a sample."""
        source, target = self._masked(blocks)
        pad = self.dictionary.pad()
        net_input: dict[str, FairseqDataset] = {
            "src_tokens": RightPadDataset(source, pad_idx=pad),
            "src_lengths": NumelDataset(source, reduce=False),
        }
        pairs = blocks.dataset if isinstance(blocks, PrependTokenDataset) else blocks
        if isinstance(pairs, SentencePairDataset) and self._gives_types:
            types = PairTypesDataset(pairs, before=0 if pairs is blocks else 1)
            net_input["token_type_ids"] = RightPadDataset(types, pad_idx=0)
        if self.cfg.include_target_tokens:
            net_input["target_tokens"] = RightPadDataset(target, pad_idx=pad)
        return NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": net_input,
                "target": RightPadDataset(target, pad_idx=pad),
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(source, reduce=True),
                **more,
            },
            sizes=[blocks.sizes],
        )

    def _load_dataset_split(self, split: str, epoch: int, combine: bool, folder: str = "") -> Blocks:
        """The unmasked blocks of ``split``, ``<s>`` included; ``folder``: where it is in the data directory."""
        cfg = self.cfg
        paths = split_paths(cfg.data)
        directory = os.path.join(paths[(epoch - 1) % len(paths)], folder)
        lines = self._load_lines(directory, split, combine)
        prepends = getattr(cfg, "prepend_bos", True)
        longest = cfg.tokens_per_sample - (1 if getattr(cfg, "shorten_to_fit", False) and prepends else 0)
        lines = maybe_shorten_dataset(
            lines, split, cfg.shorten_data_split_list, cfg.shorten_method, longest, self._seed
        )
        size = cfg.tokens_per_sample - 1 if prepends else cfg.tokens_per_sample  # <s> comes on top
        blocks = self._blocks(lines, size)
        logger.info("loaded %d blocks from: %s", len(blocks), os.path.join(directory, split))
        return PrependTokenDataset(blocks, self.dictionary.bos()) if prepends else blocks

    def _load_lines(self, directory: str, split: str, combine: bool = False) -> Any:
        """The checked lines of ``split`` in one data directory."""
        split_path = os.path.join(directory, split)
        lines = load_indexed_dataset(split_path, self.dictionary, combine=combine)
        if lines is None:
            raise DataNotFoundError(
                f"Dataset not found: {split} ({split_path}); the directory must hold {split}.bin and {split}.idx as "
                "fairseq-preprocess writes them"
            )
        if len(lines) == 0:
            raise DataError(f"{split_path} holds no lines; preprocess a text that is not empty")
        self._check_fit(lines, split_path)
        return lines

    def _blocks(self, lines: Any, size: int) -> TokenBlockDataset | SentencePairDataset:
        """Samples of up to ``size`` tokens."""
        if getattr(self.cfg, "pair_mode", "none") == "consecutive":
            return SentencePairDataset(lines, size)
        return TokenBlockDataset(
            lines,
            lines.sizes,
            size,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            break_mode=self.cfg.sample_break_mode,
        )

    def _check_fit(self, lines: Any, split_path: str) -> None:
        """Look at the beginning of the data for ids beyond the dictionary; masking looks at the rest."""
        if getattr(lines, "is_contiguous", False):
            tokens = lines.read_tokens(0, _CHECKED_TOKENS)
        else:
            tokens = np.asarray(lines[0])
        highest = int(tokens.max()) if len(tokens) else 0
        if highest >= len(self.dictionary):
            raise DataError(
                f"{split_path} holds the id {highest}, but the dictionary has only {len(self.dictionary)} symbols: "
                "dict.txt does not fit the data, or they are damaged (fairseq-validate-data tells); use the one they were made with"
            )

    def _masked(self, blocks: Blocks) -> tuple[FairseqDataset, FairseqDataset]:
        """(sources, targets)."""
        cfg = self.cfg
        if not cfg.mask_prob:
            logger.info("mask_prob is 0: source and target are identical, every token is predicted")
            return blocks, blocks
        return MaskTokensDataset.apply_mask(
            blocks,
            self.dictionary,
            pad_idx=self.dictionary.pad(),
            mask_idx=self.mask_idx,
            seed=self._seed,
            mask_prob=cfg.mask_prob,
            leave_unmasked_prob=cfg.leave_unmasked_prob,
            random_token_prob=cfg.random_token_prob,
            freq_weighted_replacement=cfg.freq_weighted_replacement,
            mask_whole_words=self._whole_words(),
            mask_multiple_length=cfg.mask_multiple_length,
            mask_stdev=cfg.mask_stdev,
            mask_exact=getattr(cfg, "mask_exact", False),
        )

    def _whole_words(self) -> Any:
        if not self.cfg.mask_whole_words:
            return None
        begins = get_whole_word_mask(self.bpe_config, self.dictionary)
        if begins is None:
            raise ConfigError("--mask-whole-words needs --bpe, which says where words begin")
        return begins

    @property
    def _seed(self) -> int:
        seed = self.cfg.seed
        # A configuration object made by hand still holds the reference to common.seed; 1 is its default.
        return 1 if isinstance(seed, str) else seed

    def build_dataset_for_inference(  # type: ignore[override]
        self, src_tokens: Any, src_lengths: Any, sort: bool = True
    ) -> Any:
        """Sentences (lists of 1-D id tensors that end in ``</s>``) as a dataset of model inputs, by length if ``sort``."""
        pad = self.dictionary.pad()
        lines = TokenBlockDataset(
            src_tokens,
            src_lengths,
            self.cfg.tokens_per_sample - 1,
            pad=pad,
            eos=self.dictionary.eos(),
            break_mode="eos",
        )
        source = PrependTokenDataset(RightPadDataset(lines, pad_idx=pad), self.dictionary.bos())
        net_input = {"src_tokens": source, "src_lengths": NumelDataset(source, reduce=False)}
        dataset = NestedDictionaryDataset({"id": IdDataset(), "net_input": net_input}, sizes=np.asarray(src_lengths))
        return SortDataset(dataset, sort_order=[np.asarray(src_lengths)]) if sort else dataset

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """The model that ``cfg`` describes. Raises ConfigError when it expects other masks than the task makes.

        Stored models are taken as they are: on the original's command line ``--mask-prob`` set both probabilities.
        """
        model = super().build_model(cfg, from_checkpoint)
        if getattr(self.cfg, "token_types", None) is None:
            self._gives_types = (getattr(cfg, "type_vocab_size", None) or 0) > 1
        if not from_checkpoint and getattr(cfg, "zero_masking", False):
            self._check_zero_masking(getattr(cfg, "mask_prob", None) or 0.0)
        return model

    def _check_zero_masking(self, self_masking: float) -> None:
        if self_masking and self.cfg.mask_prob:
            raise ConfigError(
                f"tokens would be masked twice, by the data (task.mask_prob={self.cfg.mask_prob}) and by the model "
                f"(model.mask_prob={self_masking}): set one of them to 0 (--mask-prob is the task's, --model-mask-prob "
                "the model's)"
            )
        if not self_masking and self.mask_idx < len(self.dictionary):
            raise ConfigError(
                "model.zero_masking needs masks without a symbol of their own: set task.omit_mask=true (--omit-mask), or "
                "let the model mask its input (task.mask_prob=0 and model.mask_prob=0.15)"
            )

    def begin_epoch(self, epoch: int, model: Any) -> None:
        if hasattr(model, "set_epoch"):
            model.set_epoch(epoch)

    @property
    def source_dictionary(self) -> Dictionary:
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        return self.dictionary
