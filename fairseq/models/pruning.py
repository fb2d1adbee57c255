"""Keeping some layers of a deeper checkpoint (``encoder_layers_to_keep``)."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, open_dict

from fairseq.errors import CheckpointError, ConfigError

_LAYER = re.compile(r"^(encoder.*\.layers\.)(\d+)(\..*)$")


def parse_layers(text: str) -> list[int]:
    """``"4,0,2"`` -> [0, 2, 4]. Raises ConfigError."""
    try:
        layers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        layers = [-1]
    if layers[0] < 0:
        raise ConfigError(f"encoder_layers_to_keep must be layer numbers as in 0,2,4, but is {text!r} instead")
    return layers


def prune_layers(state: dict[str, Any], model_cfg: Any) -> dict[str, Any]:
    """``state`` with the layers of ``model_cfg.encoder_layers_to_keep`` only, renumbered from 0.

    The option is then set to None, so that the checkpoints of this run are not pruned again. A file that already
    holds just as many layers is taken as it is.
    """
    text = getattr(model_cfg, "encoder_layers_to_keep", None)
    if not text:
        return state
    keep = parse_layers(text)
    present = {int(match.group(2)) for match in map(_LAYER.match, state) if match}
    if not present.issuperset(keep):
        if present == set(range(len(keep))):
            return state
        missing = ", ".join(str(layer) for layer in keep if layer not in present)
        raise CheckpointError(
            f"encoder_layers_to_keep asks for the layers {text}, but the checkpoint has no layer {missing}; "
            f"it has {len(present)} layers, counted from 0"
        )
    numbers = {old: new for new, old in enumerate(keep)}
    pruned = {}
    for key, value in state.items():
        match = _LAYER.match(key)
        if match is None:
            pruned[key] = value
        elif int(match.group(2)) in numbers:
            pruned[f"{match.group(1)}{numbers[int(match.group(2))]}{match.group(3)}"] = value
    if isinstance(model_cfg, DictConfig):
        with open_dict(model_cfg):
            model_cfg.encoder_layers_to_keep = None
    else:
        model_cfg.encoder_layers_to_keep = None
    return pruned
