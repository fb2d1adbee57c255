"""Old state dicts brought up to date, in place, before they are loaded strictly."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fairseq.errors import CheckpointError

logger = logging.getLogger(__name__)

_JOINT = re.compile(r"^(.*\.self_attn\.)in_proj_(weight|bias)$")
_NUMBERED_NORM = re.compile(r"^(.*\.layers\.\d+\.)layer_norms\.([01])\.(weight|bias)$")
_MOST_ADDED = 8
_NORMS = ("self_attn_layer_norm", "final_layer_norm")


def rename_legacy(state: dict[str, Any], prefix: str) -> None:
    """The names of 2018 and 2019: ``decoder``, ``emb_layer_norm``, joint projections, numbered norms.

    A joint ``in_proj_weight`` holds the rows of q, k and v, in this order.
    """
    for key in list(state):
        name = key
        if name.startswith(f"{prefix}decoder"):
            name = f"{prefix}encoder{name[len(prefix) + len('decoder') :]}"
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.")
        norm = _NUMBERED_NORM.match(name)
        if norm:
            name = f"{norm.group(1)}{_NORMS[int(norm.group(2))]}.{norm.group(3)}"
        joint = _JOINT.match(name)
        if joint:
            parts = state.pop(key).chunk(3)
            for projection, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                state[f"{joint.group(1)}{projection}.{joint.group(2)}"] = part.clone()
        elif name != key:
            state[name] = state.pop(key)


def upgrade_version(state: dict[str, Any], name: str, encoder: Any) -> None:
    """What the missing (or low) ``version`` of an old file means for the ``encoder`` called ``name``.

    Such files have no last norm: the model's own is dropped and the version set to 1, as the original did. Sinusoidal
    tables are never stored; the placeholder that goes with them is filled in. Encoders of plugins that have no version know
    nothing of all this.
    """
    if not hasattr(encoder, "version"):
        return
    version = state.get(f"{name}.version")
    if version is None or float(version.reshape(-1)[0]) < 2:
        if getattr(encoder, "layer_norm", None) is not None:
            encoder.layer_norm = None
        state[f"{name}.version"] = torch.tensor([1.0])
    positions = getattr(encoder, "embed_positions", None)
    if hasattr(positions, "_float_tensor"):
        state.pop(f"{name}.embed_positions.weights", None)
        state[f"{name}.embed_positions._float_tensor"] = torch.zeros(1)


def check_vocabulary(state: dict[str, Any], key: str, dictionary: Any) -> None:
    """Raise CheckpointError, with what to change in ``dict.txt``, when the embeddings ``key`` have other symbols.

    Dictionaries are filled up to a multiple of eight with lines ``madeupword0000 0``, ...; the released CLAP models with
    zero masking were trained with two of them deleted and no mask symbol.
    """
    if key not in state or state[key].size(0) == len(dictionary):
        return
    rows, found = state[key].size(0), len(dictionary)
    madeup = [symbol for symbol in dictionary.symbols if symbol.startswith("madeupword")]
    expected = len(madeup) + rows - found
    if expected >= 0 and expected < len(madeup):
        change = f"delete the last {len(madeup) - expected}: {', '.join(madeup[expected:])}"
    elif 0 < expected <= len(madeup) + _MOST_ADDED:
        added = ", ".join(f"'madeupword{number:04d} 0'" for number in range(len(madeup), expected))
        change = f"add {expected - len(madeup)} at its end: {added}"
    else:
        raise CheckpointError(
            f"the checkpoint has {rows} symbols, but the dictionary has {found}: use the dict.txt it was trained with"
        )
    raise CheckpointError(
        f"the checkpoint has {rows} symbols, but the dictionary has {found}. If dict.txt is otherwise the one it was trained "
        f"with, it should have {expected} madeupword lines and has {len(madeup)}: {change}"
    )


def extend_positions(state: dict[str, Any], key: str, table: nn.Embedding, offset: int, how: str | None) -> None:
    """Make the position table ``key`` as long as ``table``, where it is shorter and ``how`` says by what means.

    ``tile`` repeats its rows; ``interpolate`` lays them over the whole length, the first and the last staying what they are,
    and fills in straight lines between them. The ``offset`` rows before that of the first position stay.
    """
    found = state.get(key)
    if how is None or found is None or found.size(1) != table.embedding_dim:
        return
    rows, wanted = found[offset:], table.num_embeddings - offset
    if not 0 < len(rows) < wanted:
        return
    if how == "tile":
        rows = rows.repeat(-(-wanted // len(rows)), 1)[:wanted]
    else:
        drawn = nn.functional.interpolate(rows.float().t()[None], size=wanted, mode="linear", align_corners=True)
        rows = drawn[0].t().to(found.dtype)
    state[key] = torch.cat([found[:offset], rows])
    logger.info("learned positions are extended from %d to %d (%s)", len(found) - offset, wanted, how)


def check_positions(state: dict[str, Any], key: str, table: nn.Embedding, offset: int, usual: int) -> None:
    """Raise CheckpointError, with the option to give, when the position table ``key`` differs from ``table`` in rows only.

    ``offset`` rows come before that of the first position, ``usual`` ones in most checkpoints.
    """
    found = state.get(key)
    if found is None or found.size(0) == table.num_embeddings or found.size(1) != table.embedding_dim:
        return
    stored, wanted = (count - offset for count in (found.size(0), table.num_embeddings))
    other = found.size(0) - wanted
    if other != offset and other in (0, usual):
        raise CheckpointError(
            f"the position table of the checkpoint has {found.size(0)} rows, but that of the model {table.num_embeddings}: set "
            f"model.learned_offset={other}, if the checkpoint was trained with this and {wanted} positions, or else "
            f"model.max_positions={stored}"
        )
    longer = ", or model.extend_positions=tile or interpolate to make more of them" if stored < wanted else ""
    raise CheckpointError(
        f"the checkpoint has {stored} positions, but the model was made for {wanted}: set model.max_positions={stored} "
        f"(sentence tasks: task.max_positions={stored}; --max-positions {stored} sets both){longer}"
    )


def upgrade_heads(model: Any, state: dict[str, Any], prefix: str) -> None:
    """Fit the classification heads of the file and of the ``model`` to each other.

    With ``load_checkpoint_heads`` the model gets the heads of the file; otherwise heads that the model does not have,
    or has in another size, are left out. Heads that only the model has keep their present values.
    """
    heads = f"{prefix}classification_heads."
    wanted = bool(getattr(model.args, "load_checkpoint_heads", False))
    for name, shapes in stored_heads(state, prefix).items():
        own = f"{heads}{name}."
        head = dict(model.classification_heads.items()).get(name)
        if wanted and head is None and _classes(shapes) is not None:
            register_stored_head(model, name, shapes)
        elif head is None:
            _leave_out(state, own, f"leaving out classification head {name!r}, which the model does not have")
        elif shapes != (other := {key: value.shape for key, value in head.state_dict().items()}):
            _leave_out(state, own, _other_head(name, shapes, other))
    for key, value in model.classification_heads.state_dict().items():
        if f"{heads}{key}" not in state:
            logger.info("%s%s is not in the checkpoint and keeps its present values", heads, key)
            state[f"{heads}{key}"] = value
    _drop_data2vec(model, state, prefix)


def _other_head(name: str, stored: dict[str, torch.Size], own: dict[str, torch.Size]) -> str:
    theirs, ours = _classes(stored), _classes(own)
    differ = "other sizes inside" if theirs == ours or None in (theirs, ours) else f"{theirs} classes, here {ours}"
    return f"classification head {name!r} of the checkpoint has {differ}: the head starts anew, untrained"


def _classes(shapes: dict[str, torch.Size]) -> int | None:
    """How many outputs the head has; None for a plugin's own kind, which does not tell."""
    return next((shapes[key][0] for key in ("out_proj.weight", "out_proj.weight_orig") if key in shapes), None)


def stored_heads(state: Mapping[str, Any], prefix: str) -> dict[str, dict[str, torch.Size]]:
    """Name -> the shapes of the parameters of the classification heads in ``state``."""
    found: dict[str, dict[str, torch.Size]] = {}
    start = f"{prefix}classification_heads."
    for key in sorted(key for key in state if key.startswith(start)):
        name, _, rest = key[len(start) :].partition(".")
        found.setdefault(name, {})[rest] = state[key].shape
    return found


def register_stored_head(model: Any, name: str, shapes: dict[str, torch.Size]) -> None:
    """Add the head that has parameters of these ``shapes``; one without an inner layer works on each token."""
    num_classes = _classes(shapes)
    if num_classes is None:
        raise CheckpointError(
            f"the head {name!r} is of a plugin's own kind, which cannot be made from its weights alone: leave it out"
        )
    if "dense.weight" in shapes:
        model.register_classification_head(name, num_classes, shapes["dense.weight"][0])
    else:
        model.register_token_head(name, num_classes)


def _leave_out(state: dict[str, Any], prefix: str, message: str) -> None:
    logger.warning(message)
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _drop_data2vec(model: Any, state: dict[str, Any], prefix: str) -> None:
    """data2vec text models carry a regression head and a teacher; without an LM head the model's own stays."""
    teacher = f"{prefix}encoder._ema"
    found = any(key.startswith(teacher) for key in state)
    for key in [key for key in state if key.startswith((f"{prefix}encoder.regression_head", teacher))]:
        del state[key]
    if found:
        for key, value in model.encoder.lm_head.state_dict().items():
            state.setdefault(f"{prefix}encoder.lm_head.{key}", value)
