"""Parameters that want something of their own from the optimizer, and the groups that this makes.

A parameter carries its wishes as attributes (tags), which its module sets where it creates the parameter:

| tag | meaning |
|---|---|
| ``weight_decay`` (float) | replaces the optimizer's weight decay |
| ``no_decay`` (bool) | no weight decay |
| ``lr_scale`` (float) | factor on the learning rate, through the whole schedule |
| ``sparse_rows`` (bool) | an update leaves rows without gradient alone, where the optimizer is told so (``fff_sparse_update``) |

Parameters of equal tags, the last aside, share a group. Without tags there is one group, as in the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from fairseq.errors import ConfigError

TAGS = ("weight_decay", "no_decay", "lr_scale", "sparse_rows")


def tagged_options(param: Parameter, name: str = "") -> dict[str, float]:
    """The entries of a parameter group (``weight_decay``, ``lr_scale``) that the tags of ``param`` ask for."""
    decay, no_decay, scale, _ = (getattr(param, tag, None) for tag in TAGS)
    numbers = [value for value in (decay, scale) if value is not None]
    wrong = not all(isinstance(value, int | float | Tensor) and 0 <= value < float("inf") for value in numbers)
    if wrong or (no_decay and decay) or scale == 0:
        given = ", ".join(f"{tag}={getattr(param, tag)}" for tag in TAGS if hasattr(param, tag))
        raise ConfigError(
            f"the tags of parameter {name!r} ({given}) make no sense: weight_decay must be a number from 0 on and not stand "
            "beside no_decay, and lr_scale a number above 0"
        )
    options = {}
    if no_decay or decay is not None:
        options["weight_decay"] = float(decay or 0.0)
    if scale is not None and scale != 1:
        options["lr_scale"] = float(scale)
    return options


def copy_tags(source: Parameter, target: Parameter) -> None:
    """Give ``target`` (a float32 master) the tags of ``source``."""
    for tag in TAGS:
        if hasattr(source, tag):
            setattr(target, tag, getattr(source, tag))


def freeze(named: Sequence[tuple[str, Parameter]], pieces: str) -> None:
    """Train no parameter whose name contains one of the comma-separated ``pieces``. Raises ConfigError."""
    for piece in _pieces(pieces):
        for parameter in _named(named, piece, "optimization.freeze"):
            parameter.requires_grad_(False)


def scale_rates(named: Sequence[tuple[str, Parameter]], scales: str) -> None:
    """Tag parameters with the factors of ``scales``, comma-separated ``piece=factor``, on what their modules want.

    Raises ConfigError.
    """
    factors: dict[Parameter, float] = {}
    for part in _pieces(scales):
        piece, _, text = part.rpartition("=")
        try:
            factor = float(text)
        except ValueError:
            factor = 0.0
        if not piece or not 0 < factor < float("inf"):
            raise ConfigError(
                f"optimization.lr_scales must be pieces of names with factors above 0, as in embed_=0.1, but has {part!r}"
            )
        factors |= dict.fromkeys(_named(named, piece, "optimization.lr_scales"), factor)
    for parameter, factor in factors.items():
        tagged: Any = parameter
        tagged.lr_scale = getattr(parameter, "lr_scale", 1.0) * factor


def _pieces(text: str) -> list[str]:
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def _named(named: Sequence[tuple[str, Parameter]], piece: str, key: str) -> list[Parameter]:
    found = [parameter for name, parameter in named if piece in name]
    if not found:
        some = ", ".join(name for name, _ in named[:3])
        raise ConfigError(f"{key}: no parameter has {piece!r} in its name (names are {some}, ...)")
    return found


def parameter_groups(named: Iterable[tuple[str, Parameter]], no_decay: str = "") -> list[dict[str, Any]]:
    """The groups for a torch optimizer: ``params`` and the entries in which a group differs from its defaults.

    ``no_decay``: comma-separated pieces of names; a parameter whose name contains one gets no weight decay, unless its
    tags say otherwise. The group without entries of its own comes first, the others as they appear.
    """
    pieces = _pieces(no_decay)
    groups: dict[tuple[tuple[str, float], ...], list[Parameter]] = {(): []}
    for name, param in named:
        if pieces and not name:
            raise ConfigError(
                "the optimizer chooses by name what gets no weight decay, but was built from parameters without names; "
                "pass (name, parameter) pairs or set no_decay to an empty string"
            )
        by_name = {"weight_decay": 0.0} if any(piece in name for piece in pieces) else {}
        groups.setdefault(tuple((by_name | tagged_options(param, name)).items()), []).append(param)
    return [{"params": params, **dict(options)} for options, params in groups.items() if params]
