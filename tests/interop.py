"""Small models as folders, for the tests of what goes to other programs and comes from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.build import build_config
from fairseq.dataclass.state import config_to_state
from fairseq.models import build_model
from fairseq.registry import TASKS
from tests.unit.roberta import SIZES

TEXT = [
    "The Queen said nothing.",
    "Off with her head!",
    "  two  spaces, a tab\tand the end ",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d \U0001f600 42.5%",
    "it's what they're for",
    "",
]
PLAIN = [f"w{number}" for number in range(26)]


def settings_for(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the small sizes of tests under them."""
    name = settings["_name"]
    heads = 2 if "convbert" in name else SIZES["encoder_attention_heads"]
    trees = {"fff_depth": 3, "fff_trees": 1} if "ultrafastbert" in name else {}
    return {**SIZES, "max_positions": 200, "encoder_attention_heads": heads, **trees, **settings}


def folder_with(
    folder: Path,
    settings: Mapping[str, Any],
    symbols: Iterable[str] = PLAIN,
    bpe: Mapping[str, Any] | None = None,
    omit_mask: bool = False,
    double: bool = False,
    heads: Mapping[str, int] | None = None,
) -> Any:
    """A model with random weights in ``folder``: model.pt and dict.txt; and the model itself. ``heads``: name -> classes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dictionary = Dictionary()
    for symbol in symbols:
        dictionary.add_symbol(symbol)
    dictionary.save(folder / "dict.txt")
    task = {"_name": "masked_lm", "data": str(folder), "tokens_per_sample": 200, "omit_mask": omit_mask}
    cfg = build_config({"task": task, "model": settings_for(settings), **({"bpe": dict(bpe)} if bpe else {})})
    torch.manual_seed(7)
    model: Any = build_model(cfg.model, TASKS.get("masked_lm")(cfg.task, dictionary))
    for name, classes in (heads or {}).items():
        model.register_classification_head(name, classes)
    model = (model.double() if double else model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.save({"args": None, "cfg": config_to_state(cfg), "model": model.state_dict()}, folder / "model.pt")
    return model


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
