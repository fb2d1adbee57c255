"""Every import path of the original that has a home of another name here, in one table, and the finder that serves it.

An old path is the new module itself under a second name (its state included), or, where its names have several homes, a
module that holds just those. Paths that are out of scope are answered too, see `fairseq.refusals`. Nothing is imported
before somebody asks for an old path.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fairseq import refusals

_WRAPPERS = "fairseq.data.wrappers"
_SCHEDULES = "fairseq.optim.lr_scheduler"
_OTHER_SCHEDULES = "fairseq.optim.other_schedules"
_PARSER = "fairseq.dataclass.parser"

# Old module -> its new name, or {name: "module:name"}.
ALIASES: dict[str, str | Mapping[str, str]] = {
    "fairseq.binarizer": "fairseq.compat.data",
    "fairseq.checkpoint_utils": "fairseq.compat.utils",
    "fairseq.distributed_utils": "fairseq.distributed.utils",
    "fairseq.file_chunker_utils": "fairseq.data.text",
    "fairseq.file_utils": {
        "PYTORCH_FAIRSEQ_CACHE": "fairseq.compat.data:PYTORCH_FAIRSEQ_CACHE",
        "cached_path": "fairseq.data.cached_path:cached_path",
        "get_from_cache": "fairseq.data.cached_path:get_from_cache",
        "url_to_filename": "fairseq.data.cached_path:url_to_filename",
    },
    "fairseq.hub_utils": "fairseq.compat.models",
    "fairseq.meters": "fairseq.logging.meters",
    "fairseq.metrics": "fairseq.logging.metrics",
    "fairseq.nan_detector": "fairseq.training.nan_detector",
    "fairseq.options": {
        "eval_str_list": "fairseq.dataclass.base:eval_str_list",
        "gen_parser_from_dataclass": "fairseq.dataclass.flags:gen_parser_from_dataclass",
        **{
            name: f"{_PARSER}:{name}"
            for name in (
                "add_checkpoint_args",
                "add_dataset_args",
                "add_distributed_training_args",
                "add_ema_args",
                "add_model_args",
                "add_optimization_args",
                "add_preprocess_args",
                "get_args",
                "get_eval_lm_parser",
                "get_generation_parser",
                "get_interactive_generation_parser",
                "get_parser",
                "get_preprocessing_parser",
                "get_speech_generation_parser",
                "get_training_parser",
                "get_validation_parser",
                "parse_args_and_arch",
            )
        },
    },
    "fairseq.progress_bar": "fairseq.logging.progress",
    "fairseq.scoring": {"register_scorer": "fairseq.compat.plugins:register_scorer"},
    "fairseq.tokenizer": "fairseq.data.text",
    "fairseq.trainer": "fairseq.training.trainer",
    "fairseq.utils": "fairseq.compat.utils",
    "fairseq.version": {"__version__": "fairseq:__version__"},
    "fairseq.criterions.sentence_prediction": "fairseq.criterions.sentences",
    "fairseq.criterions.sentence_ranking": "fairseq.criterions.sentences",
    "fairseq.data.append_token_dataset": _WRAPPERS,
    "fairseq.data.base_wrapper_dataset": "fairseq.data.datasets",
    "fairseq.data.concat_sentences_dataset": "fairseq.data.concat_dataset",
    "fairseq.data.data_utils": {
        "batch_by_size": "fairseq.data.batching:batch_by_size",
        "collate_tokens": "fairseq.data.batching:collate_tokens",
        "filter_by_size": "fairseq.data.batching:filter_by_size",
        "filter_by_size_dynamic": "fairseq.data.batching:filter_by_size_dynamic",
        "infer_language_pair": "fairseq.data.indexed_dataset:infer_language_pair",
        "lengths_to_mask": "fairseq.data.batching:lengths_to_mask",
        "lengths_to_padding_mask": "fairseq.data.batching:lengths_to_padding_mask",
        "load_indexed_dataset": "fairseq.data.indexed_dataset:load_indexed_dataset",
        "numpy_seed": "fairseq.rng:numpy_seed",
        "post_process": "fairseq.data.text:post_process",
        "raise_if_valid_subsets_unintentionally_ignored": (
            "fairseq.data.indexed_dataset:raise_if_valid_subsets_unintentionally_ignored"
        ),
        "split_paths": "fairseq.file_io:split_paths",
    },
    "fairseq.data.data_utils_fast": "fairseq.compat.data",
    "fairseq.data.fairseq_dataset": "fairseq.data.datasets",
    "fairseq.data.id_dataset": _WRAPPERS,
    "fairseq.data.list_dataset": _WRAPPERS,
    "fairseq.data.lru_cache_dataset": "fairseq.compat.data",
    "fairseq.data.mask_tokens_dataset": "fairseq.data.masking",
    "fairseq.data.nested_dictionary_dataset": "fairseq.data.datasets",
    "fairseq.data.num_samples_dataset": _WRAPPERS,
    "fairseq.data.numel_dataset": _WRAPPERS,
    "fairseq.data.offset_tokens_dataset": _WRAPPERS,
    "fairseq.data.pad_dataset": _WRAPPERS,
    "fairseq.data.padding_mask_dataset": _WRAPPERS,
    "fairseq.data.prepend_token_dataset": _WRAPPERS,
    "fairseq.data.raw_label_dataset": _WRAPPERS,
    "fairseq.data.resampling_dataset": "fairseq.data.sampling",
    "fairseq.data.roll_dataset": _WRAPPERS,
    "fairseq.data.shorten_dataset": _WRAPPERS,
    "fairseq.data.sort_dataset": "fairseq.data.sampling",
    "fairseq.data.strip_token_dataset": _WRAPPERS,
    "fairseq.data.subsample_dataset": "fairseq.data.sampling",
    "fairseq.data.token_block_utils_fast": "fairseq.compat.data",
    "fairseq.data.encoders.gpt2_bpe_utils": "fairseq.data.encoders.gpt2_bpe",
    "fairseq.data.encoders.hf_bert_bpe": "fairseq.data.encoders.libraries",
    "fairseq.data.encoders.hf_byte_bpe": "fairseq.data.encoders.libraries",
    "fairseq.data.encoders.sentencepiece_bpe": "fairseq.data.encoders.libraries",
    "fairseq.data.encoders.space_tokenizer": "fairseq.data.encoders.base",
    "fairseq.data.encoders.utils": {"get_whole_word_mask": "fairseq.data.masking:get_whole_word_mask"},
    "fairseq.dataclass.constants": "fairseq.compat.plugins",
    "fairseq.dataclass.utils": {
        "convert_namespace_to_omegaconf": "fairseq.dataclass.build:convert_namespace_to_omegaconf",
        "eval_str_list": "fairseq.dataclass.base:eval_str_list",
        "gen_parser_from_dataclass": "fairseq.dataclass.flags:gen_parser_from_dataclass",
    },
    "fairseq.logging.progress_bar": "fairseq.logging.progress",
    "fairseq.models.ema": "fairseq.optim.ema",
    "fairseq.models.fairseq_encoder": "fairseq.models.fairseq_model",
    "fairseq.models.roberta.model_camembert": "fairseq.models.roberta.published",
    "fairseq.models.roberta.model_gottbert": "fairseq.models.roberta.published",
    "fairseq.models.roberta.model_xlmr": "fairseq.models.roberta.published",
    "fairseq.modules.layer_norm": "fairseq.compat.models",
    "fairseq.modules.learned_positional_embedding": "fairseq.compat.positions",
    "fairseq.modules.positional_embedding": "fairseq.compat.positions",
    "fairseq.modules.sinusoidal_positional_embedding": "fairseq.compat.positions",
    "fairseq.modules.transformer_sentence_encoder": "fairseq.modules.initialization",
    "fairseq.optim.adadelta": "fairseq.optim.others",
    "fairseq.optim.adagrad": "fairseq.optim.others",
    "fairseq.optim.adamax": "fairseq.optim.classic",
    "fairseq.optim.dynamic_loss_scaler": "fairseq.optim.fp16_optimizer",
    "fairseq.optim.fused_lamb": "fairseq.optim.classic",
    "fairseq.optim.nag": "fairseq.optim.classic",
    "fairseq.optim.sgd": "fairseq.optim.others",
    f"{_SCHEDULES}.cosine_lr_scheduler": _SCHEDULES,
    f"{_SCHEDULES}.fairseq_lr_scheduler": _SCHEDULES,
    f"{_SCHEDULES}.fixed_schedule": _SCHEDULES,
    f"{_SCHEDULES}.inverse_square_root_schedule": _SCHEDULES,
    f"{_SCHEDULES}.manual_lr_scheduler": _OTHER_SCHEDULES,
    f"{_SCHEDULES}.pass_through": _OTHER_SCHEDULES,
    f"{_SCHEDULES}.polynomial_decay_schedule": _SCHEDULES,
    f"{_SCHEDULES}.reduce_lr_on_plateau": _OTHER_SCHEDULES,
    f"{_SCHEDULES}.step_lr_scheduler": _SCHEDULES,
    f"{_SCHEDULES}.tri_stage_lr_scheduler": _SCHEDULES,
    f"{_SCHEDULES}.triangular_lr_scheduler": _SCHEDULES,
    "fairseq.tasks.sentence_prediction": "fairseq.tasks.sentence_task",
    "fairseq.tasks.sentence_ranking": "fairseq.tasks.choices",
}


def install() -> None:
    """Answer imports of old paths. The finder comes last, so it costs nothing when an import succeeds."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Finder:
    """Import-system hook: serves the aliases, refuses what is out of scope, makes the few stub modules.

    Not derived from the classes of ``importlib.abc``, whose import alone takes longer than all of this package's start.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        refusals.check_module(name)
        if name in ALIASES or name in refusals.STUBS:
            # As a package, so that what lay below an old package is looked for here too.
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        home = ALIASES.get(module.__name__)
        if home is None:
            refusals.fill_stub(module)
        elif isinstance(home, str):
            sys.modules[module.__name__] = importlib.import_module(home)  # which is what the import then returns
        else:
            for name, place in home.items():
                setattr(module, name, _look_up(place))


def _look_up(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
