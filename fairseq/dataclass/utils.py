"""The public functions of the old ``fairseq.dataclass.utils``."""

from __future__ import annotations

import argparse

from omegaconf import DictConfig

from fairseq.dataclass.build import build_config
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.dataclass.namespace import nest
from fairseq.dataclass.values import eval_str_list

__all__ = ["convert_namespace_to_omegaconf", "eval_str_list", "gen_parser_from_dataclass"]


def convert_namespace_to_omegaconf(args: argparse.Namespace) -> DictConfig:
    """The typed configuration for the flat Namespace of a parsed command line."""
    return build_config(nest(args))
