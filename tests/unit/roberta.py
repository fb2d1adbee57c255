"""Small models for the tests of the model side."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from fairseq.data.dictionary import Dictionary
from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.presets import PRESETS

SIZES = {
    "encoder_layers": 3,
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 20,
    "encoder_attention_heads": 3,
    "max_positions": 16,
}
PAD = 1

_IN_SIZE_ALONE = {*SIZES, "encoder_layers", "fff_depth", "fff_trees", "bigs_num_ssm"}
# One preset of each kind: those that differ in nothing but sizes, which are small in tests, are one.
KINDS = {
    str({key: value for key, value in PRESETS[name].items() if key not in _IN_SIZE_ALONE}): name
    for name in reversed(PRESETS)
}.values()


class Task:
    """A dictionary of 30 symbols and ``<mask>``."""

    def __init__(self, limit: int | None = None) -> None:
        self.source_dictionary = self.target_dictionary = Dictionary()
        for number in range(26):
            self.source_dictionary.add_symbol(f"w{number}")
        self.mask_idx = self.source_dictionary.add_symbol("<mask>")
        self.limit = limit

    def max_positions(self) -> int | None:
        return self.limit


def small_model(arch: str = "roberta", **values: Any) -> RobertaModel:
    """A model of ``SIZES`` with ``values`` over them, in training mode."""
    return build_model(argparse.Namespace(arch=arch, **{**SIZES, **values}), Task())  # type: ignore[return-value]


def without_dropout(**values: Any) -> dict[str, Any]:
    return {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, **values}


def some_tokens(batch: int = 3, tokens: int = 9) -> Tensor:
    """Ids (B, T) whose second row ends in two and whose last row is all padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 30, (batch, tokens), generator=generator)
    ids[:, 0] = 0
    if tokens > 3 and batch > 1:
        ids[1, -2:] = PAD
    ids[batch - 1 :] = PAD if batch > 2 else ids[batch - 1 :]
    return ids
