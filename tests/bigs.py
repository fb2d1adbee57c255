"""The tiny BiGS of ``tests/data/bigs`` as folders of the reference programs, and what these give for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairseq.interop.convert import convert_checkpoint
from fairseq.interop.flax_file import decode_arrays
from fairseq.models.roberta import RobertaHubInterface, RobertaModel
from tests.common import ROOT

DATA = ROOT / "tests" / "data" / "bigs"
SPECIAL = {"cls": 1, "pad": 0, "sep": 2, "unk": 3, "mask": 4}
STEP = 8  # every so many channels and symbols are in the golden file
_LEAVES = {"embedding": "weight", "scale": "weight", "kernel": "weight"}


def golden() -> dict[str, Tensor]:
    found = load_file(DATA / "model.safetensors")
    return {name: value.long() if value.dtype == torch.int16 else value for name, value in found.items()}


def torch_name(path: str) -> str:
    """The reference's name in PyTorch of the parameter ``path`` in Flax."""
    *parents, leaf = path.replace("s4_bert/", "bigs/").split("/")
    if leaf in ("A_re", "A_im", "C", "log_step"):
        parents.append("kernel")
    return ".".join([*parents, _LEAVES.get(leaf, leaf)])


def torch_weights() -> dict[str, Tensor]:
    """The model's state dict in PyTorch, but for the pooler."""
    arrays = decode_arrays((DATA / "flax_model.msgpack").read_bytes())
    weights = {
        torch_name(path): value.t().contiguous() if path.endswith("/kernel") else value
        for path, value in arrays.items()
    }
    weights["bigs.embeddings.position_ids"] = torch.arange(48)[None]
    weights["cls.predictions.decoder.weight"] = weights["bigs.embeddings.word_embeddings.weight"].clone()
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    return weights


def config(**changes: Any) -> dict[str, Any]:
    return {**json.loads((DATA / "config.json").read_text()), **changes}


def torch_folder(folder: Path, more: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    save_file({**torch_weights(), **(more or {})}, folder / "model.safetensors")
    return folder


def flax_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    (folder / "flax_model.msgpack").write_bytes((DATA / "flax_model.msgpack").read_bytes())
    return folder


def converted(kind: str, source: Path, target: Path, **overrides: Any) -> RobertaHubInterface:
    """The folder ``source`` of the format ``kind``, converted and loaded."""
    convert_checkpoint(kind, "fairseq", source, target, SPECIAL)
    return RobertaModel.from_pretrained(str(target), "model.pt", str(target), bpe=None, **overrides).eval()


def our_rows() -> Tensor:
    """Our row of each of their ids."""
    row = {1: 0, 0: 1, 2: 2, 3: 3, 4: 95}
    return torch.tensor([row.get(number, number - 1) for number in range(96)])
