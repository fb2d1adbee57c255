"""What every optimizer offers to the trainer: the base class, the gradient norm, registration and building.

A fairseq optimizer wraps a ``torch.optim.Optimizer``. The trainer calls, in this order: ``zero_grad``, ``backward``
(once per micro-batch), ``multiply_grads``, ``clip_grad_norm``, ``step``.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from fairseq.errors import ConfigError
from fairseq.ops import library
from fairseq.ops.adam import block_norms, block_norms_reference
from fairseq.optim.parameter_groups import parameter_groups
from fairseq.optim.state_layout import fit_state, of_shards, whole_shape
from fairseq.registry import OPTIMIZERS, RegistryView
from fairseq.tree import HALF

C = TypeVar("C")

#: Values summed into one partial norm. A fixed width makes the result independent of the number of threads, lets the
#: threads share one large tensor, and keeps float32 sums short (the vocabulary has tens of millions of entries).
BLOCK = 2048

Factor = float | Tensor
"""What gradients are multiplied by. Reading a number from a GPU would wait for all that it has still to do."""


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """L2 norm over all values of all ``grads``, accumulated in float32; 0-dim float32 on the gradients' device."""
    grads = [grad for grad in grads if grad.numel()]  # a process may have no row of a parameter
    if not grads:
        return torch.zeros((), dtype=torch.float32)
    if grads[0].device.type != "cpu":
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads), 2, dtype=torch.float32)))
    known = [library.compiled_for("block_norms", "cpu") and g.dtype in HALF and g.is_contiguous() for g in grads]
    ways = ((block_norms, True), (block_norms_reference, False))  # a model may have parameters of several types
    parts = [
        norms([g for g, k in zip(grads, known, strict=True) if k is way], BLOCK) for norms, way in ways if way in known
    ]
    return torch.linalg.vector_norm(torch.cat(parts))


def gradient_norm(params: Iterable[Parameter]) -> Tensor:
    """`total_norm` of the gradients of ``params``; where these are shards, of the shards of all processes together."""
    known = [(param.grad, getattr(param, "shard", None)) for param in params if param.grad is not None]
    rest = total_norm([grad for grad, shard in known if shard is None])
    shard = next((shard for _, shard in known if shard is not None), None)
    return rest if shard is None else shard.norm(total_norm([grad for grad, own in known if own is not None]), rest)


def as_factor(number: float | Tensor) -> Factor:
    """``number`` as a factor on gradients: a float, but a tensor that is on another device stays there, unread."""
    return number if torch.is_tensor(number) and number.device.type != "cpu" else float(number)


def clip_coefficient(norm: Tensor, max_norm: float, eps: float = 1e-6) -> Factor:
    """``min(1, max_norm / (norm + eps))``; NaN for a NaN norm. Reading it from another device is left to the caller."""
    return as_factor((max_norm / (norm + eps)).clamp(max=1.0))


def clip(
    grads: Sequence[Tensor],
    max_norm: float,
    aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None,
    norm: Tensor | None = None,
) -> Tensor:
    """Scale ``grads`` in place to a total norm of at most ``max_norm`` (0: leave them); returns the norm before.

    ``norm``: that norm, if it is known.
    """
    norm = total_norm(grads) if norm is None else norm
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0 and grads:
        torch._foreach_mul_(list(grads), clip_coefficient(norm, max_norm))
    return norm


LowPrecision = Mapping[Tensor, Sequence[Parameter]]
"""The low-precision parameters of each float32 master (several: the master is their concatenation, in order)."""


def learning_rates(cfg: Any) -> list[float]:
    """The configured learning rates, one per epoch; ``cfg.lr`` is a list or one number."""
    values = [cfg.lr] if isinstance(cfg.lr, (int, float)) else list(cfg.lr)
    if not values:
        raise ConfigError("lr is an empty list; give at least one learning rate")
    return [float(value) for value in values]


class FairseqOptimizer:
    """Base class. Subclasses set ``self._optimizer`` in ``__init__(cfg, params)``."""

    #: Parameters whose names contain a piece of the option ``no_decay`` get no weight decay.
    decays_by_name = False
    #: Per group, the entries that its parameters ask for (see ``parameter_groups``): no loaded state replaces them.
    own_options: Sequence[Mapping[str, float]] = ()
    #: What becomes of a value depends on itself and its own gradient and moments: an update may be given parts of parameters.
    elementwise = False
    #: The loss scaler (something with ``loss_scale``), or None.
    scaler: Any = None
    #: The place of each parameter in the model; groups may have another order.
    order: Mapping[Tensor, int] = {}

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._optimizer: Any = None

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add options; only user code without a dataclass overrides this."""

    # -------------------------------------------------------------------------------- what is wrapped

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        if not isinstance(self._optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(self).__name__}._optimizer must be a torch.optim.Optimizer")
        return self._optimizer

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Keyword arguments of the wrapped optimizer; also what overrides a loaded state's groups."""
        raise NotImplementedError

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def params(self) -> Iterator[Parameter]:
        """Every parameter, in the order of the groups."""
        for group in self.param_groups:
            yield from group["params"]

    def get_lr(self) -> float:
        """The learning rate of parameters without an ``lr_scale``."""
        return _base_lr(self.param_groups)

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr

    # -------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The state by parameter; that of shards is marked as such (`fairseq.distributed.shards`)."""
        return of_shards(self.optimizer.state_dict(), list(self.params), "mark")

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: Mapping[str, Any] | None = None) -> None:
        """Load a state, then put ``optimizer_overrides`` over the entries of every parameter group.

        A state saved with one flat vector of all parameters (fp16 runs), or in one group, is split to fit; one entry per
        parameter is joined for a flat vector. What parameters ask for by their tags stays. Raises CheckpointError when
        the state belongs to other parameters.
        """
        params = sorted(self.params, key=lambda param: self.order.get(param, 0))
        position = {param: i for i, param in enumerate(params)}
        groups = [[position[param] for param in group["params"]] for group in self.param_groups]
        fitted = fit_state(state_dict, [whole_shape(param) for param in params], groups)
        self.optimizer.load_state_dict(of_shards(fitted, list(self.params), "cut"))
        overrides = dict(optimizer_overrides or {})
        for group in self.param_groups:
            group.update(overrides)
        if any(self.own_options):
            for group, options in zip(self.param_groups, self.own_options, strict=True):
                group.update(options)
            self.set_lr(overrides.get("lr", _base_lr(state_dict["param_groups"])))

    def master_weights(self) -> dict[str, Tensor] | None:
        """Name -> float32 weights, when the model itself holds rounded copies; otherwise None."""
        return None

    def load_master_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`master_weights` gave; nothing to do when the model holds the weights."""

    # -------------------------------------------------------------------------------- one update

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context for the training forward pass."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def multiply_grads(self, c: float | Tensor) -> None:
        """Multiply all gradients by ``c``."""
        grads = [param.grad for param in self.params if param.grad is not None]
        if grads:
            torch._foreach_mul_(grads, c.to(grads[0].device) if torch.is_tensor(c) else c)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Total L2 norm of the gradients before clipping (0-dim float32); clips to ``max_norm`` when positive."""
        params = [param for param in self.params if param.grad is not None]
        return clip([param.grad for param in params if param.grad is not None], max_norm, norm=gradient_norm(params))

    def clip_unread(self, max_norm: float) -> Tensor:
        """As `clip_grad_norm`, for a caller that reads the norm itself and calls `check_norm` if it is not finite."""
        return self.clip_grad_norm(max_norm)

    def check_norm(self, norm: Tensor) -> None:
        """Raise OverflowError or FloatingPointError where ``norm`` says that a scaled gradient overflowed."""

    def step(self) -> None:
        """One update."""
        self._optimizer.step()

    def step_from(self, low_precision: LowPrecision, factor: float | Tensor = 1.0) -> None:
        """One update of float32 masters from the gradients of low-precision parameters, which then get the result.

        Gradients are converted to float32 and multiplied by ``factor``; a missing one counts as zero.
        """
        for master, params in low_precision.items():
            parts = [
                torch.zeros_like(p, dtype=master.dtype) if p.grad is None else p.grad.to(master.dtype) for p in params
            ]
            grad = parts[0].view_as(master) if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
            master.grad = grad * factor
        self.step()
        with torch.no_grad():
            for master, params in low_precision.items():
                parts = master.detach().reshape(-1).split([p.numel() for p in params])
                for param, part in zip(params, parts, strict=True):
                    param.copy_(part.view_as(param))
                master.grad = None

    def zero_grad(self) -> None:
        """Drop all gradients (None, so that unused parameters are skipped by the next update)."""
        for param in self.params:
            param.grad = None

    # -------------------------------------------------------------------------------- what it can do

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """Updates half-precision parameters without float32 masters."""
        return getattr(self._optimizer, "supports_memory_efficient_fp16", False)

    @property
    def supports_flat_params(self) -> bool:
        """All parameters may be given as one vector: no option depends on a parameter's name or shape."""
        return getattr(self._optimizer, "supports_flat_params", False)


def _base_lr(groups: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate without the factor of the first group."""
    first = groups[0]
    return first["lr"] / first["lr_scale"] if "lr_scale" in first else first["lr"]


class LegacyFairseqOptimizer(FairseqOptimizer):
    """Base of old user code that keeps its options in ``self.args``."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.args = args


OPTIMIZER_REGISTRY = RegistryView(OPTIMIZERS)


def register_optimizer(name: str, dataclass: type | None = None) -> Callable[[C], C]:
    """Class decorator: make a :class:`FairseqOptimizer` available as ``--optimizer name``."""
    return OPTIMIZERS.register(name, dataclass=dataclass, base=FairseqOptimizer)


def named_trainable(params: Iterable[Any]) -> list[tuple[str, Parameter]]:
    """(name, parameter) of what needs a gradient, from such pairs or parameters alone, which get an empty name."""
    named = (item if isinstance(item, tuple) else ("", item) for item in params)
    return [(name, param) for name, param in named if param.requires_grad]


def build_optimizer(cfg: Any, params: Iterable[Any], **kwargs: Any) -> FairseqOptimizer:
    """Build the optimizer that ``cfg`` names.

    ``cfg``: the ``optimizer`` node (its ``_name`` chooses), an old flat Namespace (``cfg.optimizer`` chooses), or a
    name. ``params``: parameters, ``(name, parameter)`` pairs, or old-style dictionaries of parameters; those that need
    no gradient are left out. Raises ConfigError when nothing is chosen or nothing is to be trained.
    """
    cls, cfg = OPTIMIZERS.resolve(cfg, "optimizer")
    pairs = named_trainable(item for p in params for item in (p.values() if isinstance(p, dict) else (p,)))
    if not pairs:
        raise ConfigError("the model has no parameter to train")
    groups = parameter_groups(pairs, getattr(cfg, "no_decay", None) or "" if cls.decays_by_name else "")
    options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    builder = getattr(cls, "build_optimizer", cls)
    optimizer: FairseqOptimizer = builder(cfg, groups if any(options) else groups[0]["params"], **kwargs)
    optimizer.own_options = options
    optimizer.order = {param: i for i, (_, param) in enumerate(pairs)}
    if any("lr_scale" in group for group in options):
        optimizer.set_lr(optimizer.param_groups[0]["lr"])
    return optimizer


class WrappedOptimizer(FairseqOptimizer):
    """Stands around ``fp32_optimizer``, which does the updates, for the sake of a low precision.

    Options, learning rate and groups are those of the inner one.
    """

    def __init__(self, cfg: Any, fp32_optimizer: FairseqOptimizer) -> None:
        super().__init__(cfg)
        self.fp32_optimizer = fp32_optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.fp32_optimizer.optimizer

    def get_lr(self) -> float:
        return self.fp32_optimizer.get_lr()

    def set_lr(self, lr: float) -> None:
        self.fp32_optimizer.set_lr(lr)
