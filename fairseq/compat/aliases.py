"""Every import path of the original that has a home of another name here, in one table, and the finder that serves it.

An old path is the new module itself under a second name (its state included), or, where its names have several homes, a
module that holds just those. What a module here lacks of the original's names is looked for in `fairseq.compat.names` and
`fairseq.compat.absent`, by one ``__getattr__`` that the finder gives to every module; modules that are out of scope are
refused. Nothing is imported before somebody asks for it.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from fairseq.compat.names import NAMES

_WRAPPERS = "fairseq.data.wrappers"
_SCHEDULES = "fairseq.optim.lr_scheduler"
_OTHER_SCHEDULES = "fairseq.optim.other_schedules"
_PARSER = "fairseq.dataclass.parser"
_MODULES = "fairseq.compat.modules"
_DATASETS = "fairseq.compat.datasets"
_TRANSFORMER = {
    "DEFAULT_MAX_SOURCE_POSITIONS": f"{_MODULES}:DEFAULT_MAX_SOURCE_POSITIONS",
    "DEFAULT_MAX_TARGET_POSITIONS": f"{_MODULES}:DEFAULT_MAX_TARGET_POSITIONS",
    "DEFAULT_MIN_PARAMS_TO_WRAP": f"{_MODULES}:DEFAULT_MIN_PARAMS_TO_WRAP",
    "Embedding": f"{_MODULES}:Embedding",
    "Linear": f"{_MODULES}:xavier_linear",
}

# Old module -> its new name, or {name: "module:name"}.
ALIASES: dict[str, str | Mapping[str, str]] = {
    "fairseq.binarizer": "fairseq.compat.data",
    "fairseq.checkpoint_utils": "fairseq.compat.utils",
    "fairseq.distributed_utils": "fairseq.distributed.utils",
    "fairseq.file_chunker_utils": "fairseq.data.text",
    "fairseq.file_utils": {
        "get_file_extension": "fairseq.compat.files:get_file_extension",
        "load_archive_file": "fairseq.compat.files:load_archive_file",
        "read_set_from_file": "fairseq.compat.files:read_set_from_file",
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
        "csv_str_list": "fairseq.compat.utils:csv_str_list",
        "eval_bool": "fairseq.compat.utils:eval_bool",
        "eval_str_dict": "fairseq.compat.utils:eval_str_dict",
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
    "fairseq.incremental_decoding_utils": "fairseq.compat.incremental",
    "fairseq.logging.progress_bar": "fairseq.logging.progress",
    "fairseq.models.fairseq_encoder": "fairseq.models.fairseq_model",
    "fairseq.models.roberta.model_camembert": "fairseq.models.roberta.published",
    "fairseq.models.roberta.model_gottbert": "fairseq.models.roberta.published",
    "fairseq.models.roberta.model_xlmr": "fairseq.models.roberta.published",
    "fairseq.modules.layer_norm": "fairseq.compat.models",
    "fairseq.modules.learned_positional_embedding": "fairseq.compat.positions",
    "fairseq.modules.positional_embedding": "fairseq.compat.positions",
    "fairseq.modules.sinusoidal_positional_embedding": "fairseq.compat.positions",
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
    "fairseq.pdb": {"set_trace": "pdb:set_trace"},
    "fairseq.criterions.cross_entropy": {},
    "fairseq.criterions.label_smoothed_cross_entropy": {
        "label_smoothed_nll_loss": "fairseq.compat.modules:label_smoothed_nll_loss"
    },
    "fairseq.data.bucket_pad_length_dataset": _DATASETS,
    "fairseq.data.colorize_dataset": _DATASETS,
    "fairseq.data.denoising_dataset": {},
    "fairseq.data.language_pair_dataset": {},
    "fairseq.data.monolingual_dataset": {},
    "fairseq.data.multi_corpus_dataset": _DATASETS,
    "fairseq.data.multi_corpus_sampled_dataset": _DATASETS,
    "fairseq.data.prepend_dataset": _DATASETS,
    "fairseq.data.replace_dataset": _DATASETS,
    "fairseq.data.round_robin_zip_datasets": _DATASETS,
    "fairseq.models.bart": {},
    "fairseq.models.bart.hub_interface": {},
    "fairseq.models.bart.model": {},
    "fairseq.models.composite_encoder": {},
    "fairseq.models.ema": {"EMA": "fairseq.optim.ema:EMA"},
    "fairseq.models.ema.ema": "fairseq.optim.ema",
    "fairseq.models.fairseq_decoder": {},
    "fairseq.models.fairseq_incremental_decoder": {},
    "fairseq.models.transformer": _TRANSFORMER,
    "fairseq.models.transformer.transformer_base": _TRANSFORMER,
    "fairseq.models.transformer.transformer_config": _TRANSFORMER,
    "fairseq.models.transformer.transformer_decoder": _TRANSFORMER,
    "fairseq.models.transformer.transformer_encoder": _TRANSFORMER,
    "fairseq.models.transformer.transformer_legacy": _TRANSFORMER,
    "fairseq.models.transformer_lm": {},
    "fairseq.modules.checkpoint_activations": _MODULES,
    "fairseq.modules.cross_entropy": {"cross_entropy": f"{_MODULES}:cross_entropy"},
    "fairseq.modules.ema_module": "fairseq.compat.ema_module",
    "fairseq.modules.fairseq_dropout": _MODULES,
    "fairseq.modules.fp32_batch_norm": _MODULES,
    "fairseq.modules.fp32_group_norm": _MODULES,
    "fairseq.modules.fp32_instance_norm": _MODULES,
    "fairseq.modules.gelu": {
        "gelu": "fairseq.modules.feed_forward:gelu",
        "gelu_accurate": "fairseq.modules.feed_forward:gelu_accurate",
    },
    "fairseq.modules.grad_multiply": _MODULES,
    "fairseq.modules.layer_drop": _MODULES,
    "fairseq.modules.multihead_attention": {
        "FairseqDropout": f"{_MODULES}:FairseqDropout",
        "MultiheadAttention": "fairseq.compat.transformer:MultiheadAttention",
        "quant_noise": f"{_MODULES}:quant_noise",
    },
    "fairseq.modules.quant_noise": {"quant_noise": f"{_MODULES}:quant_noise"},
    "fairseq.modules.same_pad": _MODULES,
    "fairseq.modules.transformer_layer": {},
    "fairseq.modules.transformer_sentence_encoder": {
        "TransformerSentenceEncoder": "fairseq.compat.transformer:TransformerSentenceEncoder",
        "TransformerSentenceEncoderLayer": "fairseq.compat.transformer:TransformerSentenceEncoderLayer",
        "init_bert_params": "fairseq.modules.initialization:init_bert_params",
    },
    "fairseq.modules.transformer_sentence_encoder_layer": {
        "TransformerSentenceEncoderLayer": "fairseq.compat.transformer:TransformerSentenceEncoderLayer"
    },
    "fairseq.modules.transpose_last": _MODULES,
    "fairseq.tasks.denoising": {},
    "fairseq.tasks.language_modeling": {
        "SAMPLE_BREAK_MODE_CHOICES": "fairseq.compat.plugins:SAMPLE_BREAK_MODE_CHOICES",
        "SHORTEN_METHOD_CHOICES": "fairseq.compat.plugins:SHORTEN_METHOD_CHOICES",
    },
    "fairseq.tasks.translation": {},
    "fairseq_cli.eval_lm": {},
    "fairseq_cli.generate": {},
    "fairseq_cli.interactive": {},
}


def install() -> None:
    """Answer imports of old paths, and look after every module of the package that is imported from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Import-system hook: the package's own modules, the aliases, and a sentence for what is out of scope.

    Not derived from the classes of ``importlib.abc``, whose import alone takes longer than all of this package's start.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(("fairseq.", "fairseq_cli.")):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            if type(spec.loader) is SourceFileLoader:
                spec.loader = _Loader(name, spec.loader.path)
            return spec
        if name in ALIASES:
            # As a package, so that what lay below an old package is looked for here too.
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        _absent().check_module(name)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        home = ALIASES[module.__name__]
        if isinstance(home, str):
            sys.modules[module.__name__] = importlib.import_module(home)  # which is what the import then returns
            return
        module.__all__ = sorted(home)  # type: ignore[attr-defined]
        module.__dir__ = lambda: sorted({*vars(module), *home})  # type: ignore[method-assign]
        answer_missing(module)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        answer_missing(module)


def submodules(package: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package`` by which its modules are attributes without having been imported."""

    def load(name: str) -> Any:
        path = f"{package}.{name}"
        if not name.startswith("_"):
            try:
                return importlib.import_module(path)
            except ImportError as error:
                absent = _absent()
                if isinstance(error, absent.AbsentModuleError):
                    raise absent.AbsentAttributeError(str(error)) from None
                if error.name != path:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def answer_missing(module: ModuleType) -> None:
    """Give ``module`` a ``__getattr__`` that knows the original's names, in front of its own."""
    own: Callable[[str], Any] | None = module.__dict__.get("__getattr__")
    module.__getattr__ = lambda name: _missing(module, name, own)  # type: ignore[method-assign]
    if "__path__" in vars(module):
        module.__class__ = _Package


class _Package(ModuleType):
    """A package whose function ``gelu`` stays when its module ``gelu`` is imported, as it did in the original."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _moved(self)):
            super().__setattr__(name, value)


def _missing(module: ModuleType, name: str, own: Callable[[str], Any] | None) -> Any:
    moved, path = _moved(module), f"{module.__name__}.{name}"
    if name in moved:
        found = fetch(moved[name])
        setattr(module, name, found)
        return found
    if name.startswith("__"):
        raise AttributeError(name)
    absent = _absent()
    try:
        stand_in = absent.find(module.__name__, name)
    except absent.AbsentModuleError as error:
        if "__path__" not in vars(module):
            raise
        # So that hasattr is False. ``from package import name`` asks the finder next, which says the same.
        raise absent.AbsentAttributeError(str(error)) from None
    if stand_in is not None:
        return stand_in
    if path in ALIASES:
        return fetch(path)
    if name == "logger":  # which every module of the original had
        return logging.getLogger(module.__name__)
    if own is not None:
        return own(name)
    if "__path__" in vars(module):
        return submodules(module.__name__)(name)
    raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")


def _moved(module: ModuleType) -> Mapping[str, str]:
    home = ALIASES.get(module.__name__)
    own = NAMES.get(module.__name__, {})
    return own if home is None or isinstance(home, str) else {**home, **own}


def _absent() -> Any:
    return importlib.import_module("fairseq.compat.absent")


def fetch(place: str) -> Any:
    """The object at ``"module:name"``, or the module at ``"module"``."""
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
