"""Old import path of ``fairseq.dataclass.parser``."""

from __future__ import annotations

from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.dataclass.parser import (
    add_checkpoint_args,
    add_dataset_args,
    add_distributed_training_args,
    add_ema_args,
    add_model_args,
    add_optimization_args,
    add_preprocess_args,
    get_args,
    get_eval_lm_parser,
    get_generation_parser,
    get_interactive_generation_parser,
    get_parser,
    get_preprocessing_parser,
    get_speech_generation_parser,
    get_training_parser,
    get_validation_parser,
    parse_args_and_arch,
)
from fairseq.dataclass.values import eval_str_list

__all__ = [
    "add_checkpoint_args",
    "add_dataset_args",
    "add_distributed_training_args",
    "add_ema_args",
    "add_model_args",
    "add_optimization_args",
    "add_preprocess_args",
    "eval_str_list",
    "gen_parser_from_dataclass",
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
]
