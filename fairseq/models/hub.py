"""Loading a model by directory or published name, with its task and BPE (``from_pretrained``)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.dataclass.user_module import import_user_module
from fairseq.models.archives import is_address, model_directory
from fairseq.models.loading import load_model_ensemble_and_task

# Files of a model directory that set an option of the BPE.
BPE_FILES = {
    "code": "bpe_codes",
    "bpecodes": "bpe_codes",
    "sentencepiece.bpe.model": "sentencepiece_model",
    "merges.txt": "bpe_merges",
    "vocab.json": "bpe_vocab",
    "encoder.json": "gpt2_encoder_json",
    "vocab.bpe": "gpt2_vocab_bpe",
    "vocab.txt": "bpe_vocab_file",
    "tokenizer.json": "hf_tokenizer_file",
}


class Pretrained(NamedTuple):
    """A loaded checkpoint: configuration, task (with its dictionary), one model a checkpoint file.

    ``overrides`` are the settings that were given or found beside the checkpoint, and replaced stored ones.
    """

    cfg: Any
    task: Any
    models: list[Any]
    overrides: dict[str, Any]


def load_pretrained(
    model_name_or_path: str,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str | None = ".",
    archives: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Pretrained:
    """Load the checkpoint ``checkpoint_file`` of a model directory, archive, address or published name.

    ``archives`` maps published names to addresses, or to dicts with ``path`` and default settings. Several files,
    separated by ``os.pathsep``, make an ensemble. ``data_name_or_path`` (where ``dict.txt`` is) is relative to the
    model's directory when it begins with a dot. Raises DataNotFoundError and CheckpointError in one sentence.
    """
    archives = archives or {}
    overrides = dict(overrides)
    place = archives.get(model_name_or_path, model_name_or_path)
    if isinstance(place, Mapping):
        for key, value in place.items():
            if key == "checkpoint_file":
                checkpoint_file = value
            elif key != "path":
                overrides.setdefault(key, value)
        place = place["path"]
    place = os.fspath(place)
    if not is_address(place) and place.endswith(".pt") and Path(place).is_file():
        # The path of the checkpoint itself, as newcomers give it.
        place, checkpoint_file = os.path.split(place)
        place = place or "."
    directory = model_directory(place, str(model_name_or_path), f"{checkpoint_file} and dict.txt")
    if data_name_or_path is not None:
        overrides["data"] = str(_data_directory(data_name_or_path, directory, archives))
    for file, option in BPE_FILES.items():
        if (directory / file).is_file():
            overrides.setdefault(option, str(directory / file))
    import_user_module(argparse.Namespace(user_dir=overrides.get("user_dir")))
    files = [str(directory / name) for name in checkpoint_file.split(os.pathsep)]
    models, cfg, task = load_model_ensemble_and_task(files, overrides)
    return Pretrained(cfg, task, models, overrides)


def _data_directory(name: str, model_dir: Path, archives: Mapping[str, Any]) -> Path:
    place = archives.get(name, name)
    if isinstance(place, Mapping):
        place = place["path"]
    place = os.fspath(place)
    if place.startswith("."):
        return model_dir / place
    return model_directory(place, str(name), "dict.txt")
