"""The pretrained checkpoint that fine-tuning starts from: its architecture, its dictionary and its BPE."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fairseq.checkpoint.reader import read
from fairseq.checkpoint.stored_paths import located
from fairseq.dataclass.base import field_specs
from fairseq.errors import CheckpointError, ConfigError, DataNotFoundError
from fairseq.file_io import split_paths
from fairseq.registry import BPES

_RECOMPUTED = ("max_positions", "max_source_positions")


@dataclass(frozen=True)
class PretrainedModel:
    """What fine-tuning takes from a checkpoint.

    ``model``: the stored settings of the architecture, without its length; ``omit_mask``: ``<mask>`` is not in the
    dictionary; ``bpe``: the settings of the subword encoder (None: the dictionary is one of words); ``digest`` identifies
    the content of the file; ``symbols``: rows of the token embeddings (None: not known); ``has_table``: positions are
    learned, so ``max_positions`` is a size of the model and cannot change.
    """

    path: Path
    digest: str
    model: dict[str, Any]
    max_positions: int | None
    has_table: bool
    parameters: int
    symbols: int | None
    dictionary: Path
    bpe: dict[str, Any] | None
    omit_mask: bool = False


def find_pretrained(path: str | Path) -> Path:
    """The checkpoint at ``path``, or the best (else last) one in that directory. Raises CheckpointError."""
    path = Path(path)
    for candidate in (path, path / "checkpoint_best.pt", path / "checkpoint_last.pt", path / "model.pt"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"--checkpoint {path} does not exist; give the file that fairseq-train wrote")


def read_pretrained(
    path: str | Path, dictionary: str | None, bpe: str | None, bpe_options: dict[str, Any]
) -> PretrainedModel:
    """Read the checkpoint at ``path``; what is given of dictionary and BPE replaces what it knows about them.

    Raises CheckpointError, and DataNotFoundError or ConfigError when dictionary or BPE cannot be found.
    """
    file = find_pretrained(path).resolve()
    state = read(file, mmap=True)
    cfg = state["cfg"]
    if cfg is None or cfg.model is None:
        raise CheckpointError(f"{file} stores no configuration of its model; convert it with fairseq-train first")
    model: dict[str, Any] = {str(key): value for key, value in _plain(cfg.model).items()}
    found = Path(dictionary) if dictionary is not None else _dictionary(file, cfg.task)
    if not found.is_file():
        raise DataNotFoundError(f"--dict {found} does not exist; give the dict.txt of pretraining")
    return PretrainedModel(
        file,
        digest(file),
        {key: value for key, value in model.items() if key not in _RECOMPUTED and value is not None},
        model.get("max_positions"),
        any(key.endswith(".embed_positions.weight") for key in state["model"]),
        _parameters(state["model"]),
        next((len(value) for key, value in state["model"].items() if key.endswith(".embed_tokens.weight")), None),
        found.resolve(),
        _bpe(file, cfg.bpe, bpe, bpe_options),
        bool(getattr(cfg.task, "omit_mask", False)),
    )


def _parameters(model: dict[str, Any]) -> int:
    """How many numbers are trained: those of tied weights once, no buffers."""
    tensors = {
        name: value for name, value in model.items() if hasattr(value, "numel") and not name.endswith(".version")
    }
    return sum({value.data_ptr(): value.numel() for value in tensors.values()}.values())


def _plain(node: Any) -> Any:
    """A configuration node, or the Namespace of an old plugin, as a dict."""
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else vars(node)


def digest(path: Path) -> str:
    """SHA-256 of a file, its first 16 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()[:16]


def _dictionary(checkpoint: Path, task: Any) -> Path:
    """``dict.txt`` beside the checkpoint, else in the data directory of its training."""
    data = split_paths(str(getattr(task, "data", None) or ""))[0]
    places = [checkpoint.parent / "dict.txt"]
    if data:
        places += [Path(data, "dict.txt"), Path(data, "input0", "dict.txt")]
    for place in places:
        if place.is_file():
            return place
    raise DataNotFoundError(
        f"there is no dict.txt beside {checkpoint}" + (f" nor in {data}" if data else "") + "; give it with --dict"
    )


def _bpe(checkpoint: Path, stored: Any, name: str | None, given: dict[str, Any]) -> dict[str, Any] | None:
    """The encoder's settings with files that exist."""
    if name == "none":
        return None
    settings = {} if stored is None else {str(key): value for key, value in _plain(stored).items()}
    if name is not None and settings.get("_name") != name:
        settings = {"_name": name}
    if not settings.get("_name"):
        raise ConfigError(
            f"{checkpoint} does not say how its texts were cut into pieces; give --bpe with its files (for RoBERTa: "
            "--bpe gpt2 --gpt2-encoder-json FILE --gpt2-vocab-bpe FILE), or --bpe none for a dictionary of words"
        )
    config = BPES.config_class(settings["_name"])
    known = field_specs(config) if config is not None else {}
    defaults = {key: spec.default for key, spec in known.items() if key not in settings and spec.default is not None}
    settings = located(settings | defaults, "bpe", checkpoint)
    return settings | {key: value for key, value in given.items() if key in known}
