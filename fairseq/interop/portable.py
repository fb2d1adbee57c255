"""A pretrained model between two formats, and what every format does with files.

A format is a class with two static methods, registered in ``fairseq.registry.FORMATS``: ``read(path, special)`` makes a
`PortableModel` of a file or folder, ``write(model, path)`` makes a file or folder of one. ``special`` are ids of special
tokens that the user gave, see ``fairseq.interop.vocabulary``.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from fairseq.checkpoint.atomic import write_atomically
from fairseq.checkpoint.safe_load import load, resolve_references
from fairseq.checkpoint.schema import portable
from fairseq.data.dictionary import Dictionary
from fairseq.data.text import json_value
from fairseq.dataclass.build import build_config
from fairseq.dataclass.state import config_from_state, config_to_state
from fairseq.errors import CheckpointError, DataNotFoundError, FairseqError
from fairseq.file_io import complete_file
from fairseq.models import build_model
from fairseq.models.loading import load_weights
from fairseq.models.roberta import factory
from fairseq.models.roberta.config import RobertaConfig
from fairseq.models.roberta.upgrade import register_stored_head, stored_heads
from fairseq.registry import TASKS

SAFETENSORS, PICKLE, CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"
TOKENIZER = "tokenizer.json"
VOCABULARY, SENTENCEPIECE, TOKENIZER_CONFIG = "vocab.txt", "spiece.model", "tokenizer_config.json"
BESIDE = (  # files that go along as they are
    TOKENIZER,
    VOCABULARY,
    SENTENCEPIECE,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)


Reader = Callable[[Path, Mapping[str, int]], "PortableModel"]


@dataclass
class PortableModel:
    """``state`` is a checkpoint of this project: settings and weights.

    ``symbols`` are what ``dict.txt`` lists, without special symbols and ``<mask>`` (None: not known); ``files`` go along
    under their names; ``origin`` is what the format it came from needs on the way back (JSON); ``folder`` is where the files lie
    that the settings name. ``sentence`` is how vectors of tokens become one of the text, for formats that say so.
    """

    state: dict[str, Any]
    symbols: list[str] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    sentence: dict[str, Any] = field(default_factory=lambda: {"pooling": "mean", "normalize": True})


def make_state(
    architecture: str,
    settings: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    symbols: list[str],
    tokens: int,
    bpe: Mapping[str, Any] | None = None,
    omit_mask: bool = False,
) -> dict[str, Any]:
    """The checkpoint of a model of ``architecture`` with ``settings``, for inputs of up to ``tokens`` tokens.

    With ``omit_mask`` the model has no row for ``<mask>``.

    Raises CheckpointError when ``weights`` are not those of such a model.
    """
    task = {"_name": "masked_lm", "data": ".", "tokens_per_sample": tokens, "omit_mask": omit_mask}
    cfg = build_config(
        {"task": task, "model": {"_name": architecture, **settings}, **({"bpe": dict(bpe)} if bpe else {})}
    )
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    with torch.device("meta"):
        model = build_model(cfg.model, TASKS.get("masked_lm")(cfg.task, dictionary))
    for name, shapes in stored_heads(weights, "").items():
        register_stored_head(model, name, shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names and shapes are compared: nothing is copied, which torch warns about
        load_weights(model, weights, cfg.model, "the checkpoint", strict=True)
    return portable({"args": None, "cfg": config_to_state(cfg), "model": OrderedDict(weights)})


def config_in(state: Mapping[str, Any]) -> Any:
    """The whole configuration in the checkpoint ``state``. Raises CheckpointError."""
    stored = state.get("cfg") or state.get("args")
    if stored is None:
        raise CheckpointError("the checkpoint stores no configuration of its model")
    return config_from_state(resolve_references(stored, "the checkpoint"))


def read_configuration(
    state: Mapping[str, Any],
    kind: str,
    wanted: Mapping[str, tuple[Any, ...]],
    slots: Mapping[str, tuple[str, ...]],
) -> RobertaConfig:
    """The settings in the checkpoint ``state``.

    Raises CheckpointError for those that ``kind`` cannot have: ``wanted`` are the values it may have of some, ``slots`` the
    variants.
    """
    config = factory.configuration(config_in(state).model)
    other = [f"{key}={getattr(config, key)}" for key, values in wanted.items() if getattr(config, key) not in values]
    other += [
        f"{slot}={config.variants[slot].name}"
        for slot, names in slots.items()
        if config.variants[slot].name not in names
    ]
    if other:
        raise CheckpointError(f"{kind} cannot be this model: it has {', '.join(other)}")
    return config


def heads_in(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> classes of the classification heads among ``weights``."""
    prefix, end = "classification_heads.", ".out_proj.weight"
    return {
        key[len(prefix) : -len(end)]: len(value)
        for key, value in weights.items()
        if key.startswith(prefix) and key.endswith(end)
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in ``model.safetensors`` or ``pytorch_model.bin`` of ``folder``, without the prefixes of wrappers."""
    if (folder / SAFETENSORS).is_file():
        try:
            found: Mapping[str, Any] = safetensors.torch.load_file(folder / SAFETENSORS)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / SAFETENSORS} is damaged or not in safetensors format: {error}") from None
    elif (folder / PICKLE).is_file():
        found = load(folder / PICKLE)
    else:
        raise DataNotFoundError(f"there is no {SAFETENSORS} or {PICKLE} in {folder}; give the folder of a model")
    return {
        key.removeprefix("_orig_mod.").removeprefix("module."): value
        for key, value in found.items()
        if torch.is_tensor(value)
    }


def write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``; tensors that share memory are written once each."""
    data = safetensors.torch.save(_apart(weights), metadata={"format": "pt"})
    write_atomically(folder / SAFETENSORS, lambda file: file.write(data))


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    result = {}
    for key, value in weights.items():
        value = value.detach().contiguous()
        result[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def load_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file ``path``. Raises DataNotFoundError and CheckpointError."""
    try:
        found = json_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataNotFoundError(f"there is no {path.name} in {path.parent}; give the folder of a model") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def save_json(value: Any, path: Path) -> None:
    with complete_file(path) as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def reads(what: str) -> Callable[[Reader], Reader]:
    """Decorator of a format's ``read``: values of a wrong kind in ``config.json`` are a CheckpointError."""

    def decorate(read: Reader) -> Reader:
        @functools.wraps(read)
        def guarded(folder: Path, special: Mapping[str, int]) -> PortableModel:
            try:
                return read(folder, special)
            except FairseqError:
                raise
            except (AttributeError, LookupError, TypeError, ValueError, OverflowError, OmegaConfBaseException) as error:
                raise CheckpointError(f"{folder / CONFIG} does not describe {what}: {error!r}") from None

        return guarded

    return decorate


def recognized_config(folder: Path, recognizes: Callable[[Mapping[str, Any]], bool], what: str) -> dict[str, Any]:
    """``config.json`` in ``folder``. Raises CheckpointError unless ``recognizes`` says that it is one of ``what``."""
    config = load_json(folder / CONFIG)
    if not recognizes(config):
        raise CheckpointError(f"{folder / CONFIG} is not one of {what}: model_type is {config.get('model_type')!r}")
    return config


def files_beside(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in BESIDE if (folder / name).is_file()}
