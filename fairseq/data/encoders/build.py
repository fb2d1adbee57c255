"""Build a sub-word encoder or tokenizer from its settings, and register new ones.

An encoder has ``encode(str) -> str`` (symbols joined by spaces), ``decode(str) -> str`` and, for whole-word masking,
``is_beginning_of_word(symbol) -> bool``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from fairseq.registry import BPES, TOKENIZERS, Registry


def build_bpe(cfg: Any, *args: Any) -> Any:
    """The encoder that ``cfg`` names: a configuration node with ``_name``, a plain name, a parsed Namespace with the
    attribute ``bpe``, or None (gives None). Something already built is returned as it is."""
    return _build(BPES, "bpe", cfg, *args)


def build_tokenizer(cfg: Any, *args: Any) -> Any:
    """Like `build_bpe`, for ``--tokenizer``."""
    return _build(TOKENIZERS, "tokenizer", cfg, *args)


def register_bpe(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator of plugins: ``--bpe name``; the class takes its settings as only argument."""
    return BPES.register(name, dataclass=dataclass)


def register_tokenizer(name: str, dataclass: type | None = None) -> Callable[[Any], Any]:
    """Class decorator of plugins: ``--tokenizer name``."""
    return TOKENIZERS.register(name, dataclass=dataclass)


def _build(registry: Registry[Any], kind: str, cfg: Any, *args: Any) -> Any:
    if cfg is None or (callable(getattr(cfg, "encode", None)) and not isinstance(cfg, str)):
        return cfg
    name: Any
    settings: Any
    if isinstance(cfg, str):
        name, settings = cfg, None
    elif isinstance(cfg, Namespace):
        name, settings = getattr(cfg, kind, None), cfg
        if name is not None and not isinstance(name, str):  # a Namespace of sections, as hub code passes
            return _build(registry, kind, name, *args)
    else:
        name, settings = getattr(cfg, "_name", None), cfg
    if name is None:
        return None
    cls, config_class = registry.get(name), registry.config_class(name)
    if config_class is not None:
        if settings is None:
            settings = config_class()
        elif isinstance(settings, Namespace) and hasattr(config_class, "from_namespace"):
            settings = config_class.from_namespace(settings)
    builder = getattr(cls, f"build_{kind}", cls)
    return builder(settings, *args)
