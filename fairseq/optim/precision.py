"""The precision of a run: which mode the options ask for, and what it does to model, samples and optimizer.

| mode | weights of the model | optimizer | training forward pass |
|---|---|---|---|
| fp32 | float32 | the chosen one, as it is | plain |
| bf16 | bfloat16 | float32 masters, one per parameter | plain |
| fp16 | float16 | float32 masters, one flat vector (one per parameter with tags), loss scale | plain |
| amp  | float32 | the chosen one; in float16 (on CUDA, unless ``amp_dtype`` is bf16) a loss scale | autocast |
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fairseq.errors import ConfigError
from fairseq.logging.setup import warn_once
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fairseq_optimizer import FairseqOptimizer, build_optimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer, MemoryEfficientFP16Optimizer
from fairseq.tree import HALF, is_sharded, map_tensors

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WRAPPERS = ("FP16Optimizer", "MemoryEfficientFP16Optimizer", "AMPOptimizer")


def resolve(common: Any, device: torch.device | str) -> str:
    """The mode (``fp32``, ``bf16``, ``fp16`` or ``amp``) that the options of ``cfg.common`` ask for on ``device``.

    The memory-efficient flags imply the plain ones. fp16 without CUDA becomes fp32, with one warning. Raises
    ConfigError for two modes at once.
    """
    asked = {mode: _asks(common, mode) for mode in ("fp16", "bf16", "amp")}
    chosen = [mode for mode, yes in asked.items() if yes]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; choose one precision")
    mode = chosen[0] if chosen else "fp32"
    if mode == "fp16" and torch.device(device).type != "cuda":
        warn_once(logger, "fp16 training needs a CUDA device; training in fp32 instead (on the CPU, --bf16 is faster)")
        return "fp32"
    return mode


def _asks(common: Any, mode: str) -> bool:
    return bool(getattr(common, mode, False) or getattr(common, f"memory_efficient_{mode}", False))


def cast_model(model: M, mode: str) -> M:
    """Convert all floating-point parameters and buffers, in place, to the type that ``mode`` trains in."""
    return model.to(_DTYPES[mode]) if mode in _DTYPES else model


def cast_sample(sample: Any, mode: str) -> Any:
    """The sample (nested dictionaries, lists, tuples) with its float32 tensors converted for ``mode``."""
    dtype = _DTYPES.get(mode)
    if dtype is None:
        return sample
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor, sample)


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """float32 products and convolutions on CUDA in TF32, if ``wanted``; afterwards as before."""
    if not wanted:
        yield
        return
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def build(
    mode: str, cfg: Any, named_params: Iterable[tuple[str, Parameter]], sharded: bool = False
) -> FairseqOptimizer:
    """The optimizer of a run. ``cfg`` is the root configuration; the parameters have been cast by ``cast_model``.

    ``sharded`` ones are float32 in every mode: they are their own masters.
    """
    if mode in _DTYPES and sharded:
        return MemoryEfficientFP16Optimizer.build_optimizer(cfg, named_params, allow_unsupported=True)
    if mode in _DTYPES:
        if getattr(cfg.common, f"memory_efficient_{mode}", False):
            return MemoryEfficientFP16Optimizer.build_optimizer(cfg, named_params)
        return FP16Optimizer.build_optimizer(cfg, named_params)
    if mode == "amp":
        return AMPOptimizer.build_optimizer(cfg, named_params)
    return build_optimizer(cfg.optimizer, named_params)


def accepts_state_of(optimizer: FairseqOptimizer, saved_name: str) -> bool:
    """Whether a state saved by the class ``saved_name`` may be loaded: the same one, in any precision mode.

    The wrappers' names do not tell which optimizer they wrapped; loading checks the state itself.
    """
    inner = getattr(optimizer, "fp32_optimizer", optimizer)
    return saved_name in (type(inner).__name__, *_WRAPPERS)


def full_precision_state(model: nn.Module, optimizer: FairseqOptimizer | None) -> OrderedDict[str, Tensor]:
    """``model.state_dict()`` for a checkpoint: on the CPU, half-precision tensors as float32, masters where they exist.

    Every name of a shared parameter gets its master, so that a resumed run is exact under any of them. Tensors that
    need no conversion are not copied. Sharded tensors stay where they are, to be gathered.
    """
    masters = (optimizer.master_weights() if optimizer is not None else None) or {}
    params = dict(getattr(optimizer, "named_params", ()))
    by_identity = {id(params[name]): value for name, value in masters.items()}
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in model.state_dict(keep_vars=True).items():
        if not torch.is_tensor(value):
            state[name] = value
            continue
        tensor = by_identity.get(id(value), value).detach()
        if is_sharded(tensor):
            state[name] = tensor
            continue
        state[name] = tensor.cpu().float() if tensor.dtype in HALF else tensor.cpu()
    return state


def restore_masters(optimizer: FairseqOptimizer, state: Mapping[str, Tensor]) -> None:
    """After the model was loaded from the tensors ``state``: set the masters, to the last bit where that is known.

    A stored float32 tensor is taken if it rounds to what the model now holds; other parameters (renamed by the legacy
    upgrade, newly initialized heads) start from the model's own rounded value.
    """
    if optimizer.master_weights() is None:
        return
    exact: dict[str, Tensor] = {}
    for name, param in getattr(optimizer, "named_params", ()):
        stored, own = state.get(name), param.detach()
        same = stored is not None and stored.shape == own.shape and torch.equal(stored.to(own.device, own.dtype), own)
        exact[name] = stored if same and stored is not None else own
    optimizer.load_master_weights(exact)
