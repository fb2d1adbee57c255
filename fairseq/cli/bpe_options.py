"""What commands share that turn text into pieces: the flags of every encoder, and the encoder's settings from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairseq.dataclass.base import field_specs
from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.registry import BPES


def add_bpe_options(parser: argparse.ArgumentParser) -> None:
    """Flags for the files of every encoder; a flag that is not given is absent from the Namespace."""
    options = parser.add_argument_group("BPE files")
    for name in BPES.names():
        config = BPES.config_class(name)
        if config is not None:
            gen_parser_from_dataclass(options, config(), delete_default=True)


def given_bpe_options(args: argparse.Namespace) -> dict[str, Any]:
    """The encoders' settings that the user gave."""
    configs = [config for name in BPES.names() if (config := BPES.config_class(name)) is not None]
    names = {field for config in configs for field in field_specs(config) if not field.startswith("_")}
    return {key: value for key, value in vars(args).items() if key in names}


def bpe_settings(args: argparse.Namespace) -> Any:
    """Settings (picklable) of the encoder ``args.bpe``, None when there is none."""
    if not args.bpe:
        return None
    config_class = BPES.config_class(args.bpe)
    if config_class is None:
        return args  # a plugin's encoder without a dataclass takes the Namespace
    settings: Any = config_class.from_namespace(args)  # type: ignore[attr-defined]
    settings._name = args.bpe
    return settings


def find_dictionary(srcdict: str | None, args: argparse.Namespace) -> str:
    """The path of ``--srcdict`` (a file, or a directory with ``dict.txt``), or of the one that belongs to ``--bpe``.

    That is ``dict.txt`` beside the encoder's files, as published models come; for GPT-2's files by address, the
    published one. Raises ConfigError when there is none.
    """
    if srcdict is not None:
        path = Path(srcdict) / "dict.txt" if Path(srcdict).is_dir() else Path(srcdict)
        if not path.is_file():
            raise DataNotFoundError(f"dictionary not found: {path} (given as --srcdict)")
        return str(path)
    for value in given_bpe_options(args).values():
        beside = Path(str(value)).parent / "dict.txt"
        if isinstance(value, str) and Path(value).is_file() and beside.is_file():
            return str(beside)
    if args.bpe == "gpt2" and not given_bpe_options(args):
        from fairseq.data.cached_path import cached_path
        from fairseq.data.encoders.configs import GPT2_DICT

        return cached_path(GPT2_DICT, option="--srcdict")
    raise ConfigError("give the dictionary of the model with --srcdict dict.txt; there is none beside the BPE's files")
