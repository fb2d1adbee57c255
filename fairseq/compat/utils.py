"""Helpers at their old paths ``fairseq.utils`` and ``fairseq.checkpoint_utils``, for plugins and tests.

What belongs to a floor of its own is re-exported from there; the rest are small functions on samples and tensors. B
batch, T tokens.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.reader import (
    load_checkpoint_to_cpu,
    load_ema_from_checkpoint,
    load_pretrained_component_from_model,
    save_ema_as_checkpoint,
)
from fairseq.checkpoint.store import checkpoint_paths, verify_checkpoint_directory
from fairseq.compat.positions import rows_of
from fairseq.criterions.masked_lm import perplexity
from fairseq.dataclass.base import eval_str_list, literal
from fairseq.dataclass.user_module import import_user_module
from fairseq.file_io import PathManager, split_paths
from fairseq.models.loading import load_model_ensemble, load_model_ensemble_and_task
from fairseq.models.loading import prune_layers as prune_state_dict
from fairseq.modules.feed_forward import ACTIVATIONS, get_activation_fn
from fairseq.optim.fairseq_optimizer import clip, total_norm
from fairseq.training.batches import resolve_max_positions
from fairseq.training.run import load_checkpoint
from fairseq.tree import HALF, map_tensors

__all__ = [
    "apply_to_sample",
    "checkpoint_paths",
    "clip_grad_norm_",
    "convert_padding_direction",
    "csv_str_list",
    "deprecation_warning",
    "eval_bool",
    "eval_str_dict",
    "eval_str_list",
    "fill_with_neg_inf",
    "get_activation_fn",
    "get_available_activation_fns",
    "get_perplexity",
    "get_rng_state",
    "has_parameters",
    "import_user_module",
    "item",
    "load_checkpoint",
    "load_checkpoint_to_cpu",
    "load_ema_from_checkpoint",
    "load_model_ensemble",
    "load_model_ensemble_and_task",
    "load_pretrained_component_from_model",
    "log_softmax",
    "make_positions",
    "model_eval",
    "move_to_cpu",
    "move_to_cuda",
    "multi_tensor_total_norm",
    "prune_state_dict",
    "resolve_max_positions",
    "safe_getattr",
    "safe_hasattr",
    "save_checkpoint",
    "save_ema_as_checkpoint",
    "set_rng_state",
    "set_torch_seed",
    "softmax",
    "split_paths",
    "strip_eos",
    "strip_pad",
    "torch_persistent_save",
    "verify_checkpoint_directory",
]


def torch_persistent_save(obj: Any, filename: Any, async_write: bool = False) -> None:
    """Save atomically to the path ``filename``, or plainly to an open file; ``async_write`` by `PathManager.opena`."""
    if async_write:
        with PathManager.opena(filename, "wb") as handle:
            _torch_persistent_save(obj, handle)
    elif isinstance(filename, (str, os.PathLike)):
        atomic_save(obj, filename)
    else:
        _torch_persistent_save(obj, filename)


def _torch_persistent_save(obj: Any, f: IO[bytes]) -> None:
    torch.save(obj, f)


def apply_to_sample(f: Callable[[Tensor], Any], sample: Any) -> Any:
    """``f`` on every tensor of nested dicts, lists, tuples and sets; an empty sample becomes ``{}``."""
    return {} if hasattr(sample, "__len__") and len(sample) == 0 else map_tensors(f, sample)


def move_to_cuda(sample: Any, device: torch.device | str | None = None) -> Any:
    """The sample with its tensors on the (current) CUDA device."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    return apply_to_sample(lambda tensor: tensor.to(device=device, non_blocking=True), sample)


def move_to_cpu(sample: Any) -> Any:
    """The sample with its tensors on the CPU; half and bfloat16 ones become float32."""
    return apply_to_sample(lambda tensor: tensor.to("cpu", torch.float32 if tensor.dtype in HALF else None), sample)


def item(tensor: Any) -> Any:
    """The number in a one-element tensor or array; anything else as it is."""
    return tensor.item() if hasattr(tensor, "item") else tensor


def clip_grad_norm_(
    params: Tensor | Iterable[Tensor], max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Scale gradients in place to a total L2 norm of at most ``max_norm`` (0: leave them); returns the norm before."""
    parameters = [params] if isinstance(params, Tensor) else list(params)
    grads = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
    return clip(grads, max_norm, aggregate_norm_fn)


def multi_tensor_total_norm(grads: Sequence[Tensor], chunk_size: int = 2048 * 32) -> Tensor:
    """L2 norm over all values of all gradients; ``chunk_size`` is accepted for old callers."""
    return total_norm(grads)


def convert_padding_direction(
    src_tokens: Tensor, padding_idx: int, right_to_left: bool = False, left_to_right: bool = False
) -> Tensor:
    """(B, T) token ids with each row's padding moved to the other end."""
    if right_to_left == left_to_right:
        raise ValueError("exactly one of `right_to_left` and `left_to_right` must be True")
    padding = src_tokens.eq(padding_idx)
    if not padding.any() or not padding[:, -1 if right_to_left else 0].any():
        return src_tokens
    length = src_tokens.size(1)
    shift = padding.sum(dim=1, keepdim=True)
    places = torch.arange(length, device=src_tokens.device).expand_as(src_tokens)
    return src_tokens.gather(1, torch.remainder(places - shift if right_to_left else places + shift, length))


def make_positions(tensor: Tensor, padding_idx: int, onnx_trace: bool = False) -> Tensor:
    """(B, T) rows of a position table for (B, T) ids: counted from ``padding_idx + 1``, padding stays at itself."""
    return rows_of(tensor, padding_idx)


def strip_pad(tensor: Tensor, pad: int) -> Tensor:
    return tensor[tensor.ne(pad)]


def strip_eos(tensor: Tensor, eos: int) -> Tensor:
    return tensor[tensor.ne(eos)]


def fill_with_neg_inf(t: Tensor) -> Tensor:
    """``t`` filled with minus infinity, in float32 and back."""
    return t.float().fill_(float("-inf")).type_as(t)


def softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    return F.softmax(x, dim=dim, dtype=torch.float32)


def log_softmax(x: Tensor, dim: int, onnx_trace: bool = False) -> Tensor:
    return F.log_softmax(x, dim=dim, dtype=torch.float32)


def get_available_activation_fns() -> list[str]:
    return list(ACTIVATIONS)


def get_perplexity(loss: Any, round: int = 2, base: int = 2) -> float:
    """``base`` to the power of ``loss``; infinite when that overflows, 0 without a loss."""
    return 0.0 if loss is None else perplexity(loss, base, round)


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@contextlib.contextmanager
def model_eval(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def get_rng_state() -> dict[str, Any]:
    """The random states of torch: ``torch_rng_state`` and, with a device, ``cuda_rng_state``."""
    state: dict[str, Any] = {"torch_rng_state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng_state"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch_rng_state"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng_state"])


class set_torch_seed:
    """Seed torch now; as a context manager, the state from before comes back at the end."""

    def __init__(self, seed: int) -> None:
        if not isinstance(seed, int):
            raise TypeError(f"`seed` must be an integer, but is {seed!r}")
        self.rng_state = get_rng_state()
        torch.manual_seed(seed)

    def __enter__(self) -> set_torch_seed:
        return self

    def __exit__(self, *exc: object) -> None:
        set_rng_state(self.rng_state)


def csv_str_list(x: str) -> list[str]:
    return x.split(",")


def eval_str_dict(x: Any, type: Callable[[Any], Any] = dict) -> Any:
    """A dictionary from its Python literal; None stays None, a dictionary itself."""
    return literal(x, "the option") if isinstance(x, str) else x


def eval_bool(x: Any, default: bool = False) -> bool:
    """``default`` for None, the literal's truth for a string."""
    if x is None:
        return default
    return bool(literal(x, "the option")) if isinstance(x, str) else bool(x)


def safe_getattr(obj: Any, k: str, default: Any = None) -> Any:
    """The attribute, or ``default`` when it is missing or None."""
    value = getattr(obj, k, None)
    return default if value is None else value


def safe_hasattr(obj: Any, k: str) -> bool:
    return getattr(obj, k, None) is not None


def deprecation_warning(message: str, stacklevel: int = 3) -> None:
    warnings.warn(message, stacklevel=stacklevel)


def save_checkpoint(cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float | None) -> Path | None:
    """Write the files that are due now; ``cfg`` is the trainer's own ``checkpoint`` section, given for old callers."""
    return trainer.save_checkpoint(epoch_itr, val_loss)
