"""Checkpoints to models: the task is set up and the model built as the stored configuration says.

A deeper checkpoint may give only some of its layers (``encoder_layers_to_keep``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from fairseq.checkpoint.reader import read
from fairseq.errors import CheckpointError, ConfigError, DataNotFoundError
from fairseq.limits import expecting
from fairseq.overrides import accepts
from fairseq.registry import TASKS

logger = logging.getLogger(__name__)


def load_model_ensemble_and_task(
    filenames: Sequence[str],
    arg_overrides: Mapping[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: dict[str, Any] | None = None,
) -> tuple[list[Any], Any, Any]:
    """The models of ``filenames`` (on the CPU, float32), the configuration of the last one, and the task.

    ``arg_overrides`` replace stored settings by key name; a given ``task`` is used instead of the stored one;
    ``state`` is the first file, read already. Raises DataNotFoundError and CheckpointError.
    """
    if num_shards != 1:
        raise CheckpointError(f"checkpoints in {num_shards} shards are not supported: give one file a model")
    models: list[Any] = []
    cfg = None
    for filename in filenames:
        path = _with_suffix(filename, suffix)
        current = state if state is not None else read_state(path, arg_overrides)
        state = None
        cfg = current["cfg"]
        if task is None:
            task = setup_stored_task(cfg)
        if current.get("task_state"):
            task.load_state_dict(current["task_state"])
        with expecting(sum(map(_bytes, current["model"].values())), f"the weights in {path}"):
            model = build_stored_model(task, cfg.model)
        load_weights(model, current["model"], cfg.model, path, strict)
        wrong = first_not_finite(model.named_parameters())
        if wrong is not None:
            raise CheckpointError(
                f"{path} cannot be used: {wrong}; its training went wrong, take an earlier checkpoint"
            )
        models.append(model)
    return models, cfg, task


def load_model_ensemble(
    filenames: Sequence[str], arg_overrides: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
) -> tuple[list[Any], Any]:
    """``load_model_ensemble_and_task``, with its arguments, without the task."""
    models, cfg, _ = load_model_ensemble_and_task(filenames, arg_overrides, *args, **kwargs)
    return models, cfg


def read_state(path: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The checkpoint at ``path`` with its configuration. Raises DataNotFoundError when there is no such file."""
    if not Path(path).is_file():
        raise DataNotFoundError(f"there is no checkpoint {path}")
    return read(path, overrides=dict(overrides or {}))


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def setup_stored_task(cfg: Any) -> Any:
    """The task that ``cfg.task`` names, with its dictionary."""
    if cfg is None:
        raise CheckpointError("the checkpoint stores no configuration, so that its task and model are not known")
    name = getattr(cfg.task, "_name", None)
    if not name:
        raise CheckpointError("the checkpoint names no task; give one")
    return TASKS.get(name).setup_task(cfg.task)


def build_stored_model(task: Any, cfg: Any) -> Any:
    """``task.build_model``, which is told that weights will follow where it wants to know (old plugins do not)."""
    told = {"from_checkpoint": True} if accepts(task.build_model, "from_checkpoint") else {}
    return task.build_model(cfg, **told)


class MisfitError(CheckpointError):
    """Weights whose names or shapes are not the model's."""


def load_weights(model: nn.Module, weights: Mapping[str, Any], model_cfg: Any, path: str, strict: bool) -> None:
    """Load ``weights`` into ``model``. Raises CheckpointError with the first names or shapes that do not fit."""
    try:
        model.load_state_dict(dict(weights), strict=strict, model_cfg=model_cfg)  # type: ignore[call-arg]
    except CheckpointError:
        raise
    except (KeyError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        detail = " ".join(lines[:3]) or str(error)
        raise MisfitError(
            f"{path} does not fit the model: {detail[:400]}; give the options (architecture, sizes, dictionary) that it "
            "was trained with"
        ) from error


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of some ``named`` tensors that holds NaN or infinity, in words; None when all are finite."""
    for name, tensor in named:
        tensor = tensor.detach()
        # The sum, which is quick, is not finite where a value is not; or where it overflows, therefore the second look.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()):
            count = int(torch.isfinite(tensor).logical_not_().sum())
            if count:
                return f"{count} of the {tensor.numel()} values of {name} are NaN or infinite"
    return None


def _with_suffix(filename: str, suffix: str) -> str:
    return filename.replace(".pt", suffix + ".pt") if suffix else filename


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
