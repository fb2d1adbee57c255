"""What the configuration in the checkpoint that a run starts from tells the run: its architecture, where none is given, its
BPE, and why its weights do not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from fairseq.checkpoint.reader import read
from fairseq.checkpoint.safe_load import resolve_references
from fairseq.checkpoint.shard_reader import file_of
from fairseq.checkpoint.stored_paths import relocate
from fairseq.data.encoders import build_bpe, fit
from fairseq.dataclass.state import config_from_state
from fairseq.errors import ConfigError, FairseqError
from fairseq.logging.setup import TRAIN_LOGGER

logger = logging.getLogger(TRAIN_LOGGER)


def stored_config(checkpoint: Mapping[str, Any], source: str) -> Any:
    """The configuration in ``checkpoint``, read from the file ``source``, with its files; None when it has none to read."""
    stored = checkpoint.get("cfg")
    stored = checkpoint.get("args") if stored is None else stored
    if stored is None:
        return None
    try:
        cfg = config_from_state(resolve_references(stored, source))
    except FairseqError:  # of a plugin that is not there; the weights may be good all the same
        return None
    relocate(cfg, source)
    return cfg


def keep_architecture(cfg: Any) -> None:
    """Give a run that names no architecture that of the checkpoint it is fine-tuned from.

    Raises ConfigError when there is none. A task that decides the longest input takes the model's, too.
    """
    if cfg.model is not None:
        return
    source = cfg.checkpoint.finetune_from_model
    if source and not Path(file_of(source)).is_file():
        raise ConfigError(f"--finetune-from-model {source} does not exist")
    model = (
        getattr(stored_config(read(source, mmap=True, with_config=False, shards=None), source), "model", None)
        if source
        else None
    )
    if model is None:
        raise ConfigError("no architecture is given: pass --arch, for example --arch roberta_base")
    with open_dict(cfg) if isinstance(cfg, DictConfig) else nullcontext():
        cfg.model = model
        if getattr(cfg.task, "max_positions", None) is not None and getattr(model, "max_positions", None) is not None:
            cfg.task.max_positions = model.max_positions
    logger.info("the architecture is that of %s: %s", source, model._name)


def keep_bpe(cfg: Any, checkpoint: Mapping[str, Any], source: str) -> None:
    """Store the BPE of ``checkpoint`` with a run that names none: whoever loads its model encodes texts as before."""
    if getattr(cfg, "bpe", None) is not None:
        return
    bpe = getattr(stored_config(checkpoint, source), "bpe", None)
    if not isinstance(bpe, DictConfig):
        return
    with open_dict(cfg):
        cfg.bpe = OmegaConf.to_container(bpe)
    logger.info("the BPE is that of %s: %s", source, bpe.get("_name"))


def check_bpe(cfg: Any, dictionary: Any) -> None:
    """Warn of a BPE that would be stored with the model (the section ``cfg``) and that its texts could not be read with."""
    if not isinstance(cfg, DictConfig) or any("://" in str(value) for value in cfg.values()):
        return  # nothing is downloaded for this
    try:
        warning = None if dictionary is None else fit.encoder_misfit(build_bpe(cfg), dictionary)
    except FairseqError as error:
        warning = str(error)
    if warning:
        logger.warning("the BPE that is stored with the model: %s", warning)


def misfit(model: Any, checkpoint: Mapping[str, Any], source: str) -> str | None:
    """Why the weights of ``checkpoint`` do not fit the configuration ``model``; None when both say the same.

    Settings with fractions (dropout, ...) do not decide what parameters there are.
    """
    stored, differences = stored_config(checkpoint, source), []
    for key, value in (getattr(stored, "model", None) or {}).items():
        asked = getattr(model, key, value)
        kinds = (int, str)  # bool is an int
        if key != "_name" and value != asked and isinstance(value, kinds) and isinstance(asked, kinds):
            differences.append((key, value, asked))
    if not differences:
        return None
    shown = "; ".join(f"{key} {_word(value)}, not {_word(asked)}" for key, value, asked in differences)
    return (
        f"{source} does not fit the model: it was trained with {shown}; give the same, and the --arch it was trained "
        f"with ({stored.model._name})"
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
