"""The base of optimizers that are written out here: parameters are updated in float32, whatever their own type is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fairseq.errors import CheckpointError, ConfigError
from fairseq.tree import HALF


def undecorated(method: Any) -> Any:
    """``method`` without the mark that hides it from torch.compile: the mark imports the compiler, which takes seconds."""
    return getattr(method, "__wrapped__", method)


class Float32Update(torch.optim.Optimizer):
    """Subclasses say in `update` what happens to one parameter. State tensors are float32 (float64 for float64)."""

    supports_memory_efficient_fp16 = True
    supports_flat_params = True
    #: State values of the shape of their parameter that an update makes (others: see `update`).
    moments: tuple[str, ...] = ()

    add_param_group = undecorated(torch.optim.Optimizer.add_param_group)
    zero_grad = undecorated(torch.optim.Optimizer.zero_grad)
    state_dict = undecorated(torch.optim.Optimizer.state_dict)

    def update(self, weights: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change ``weights`` and ``state`` in place; neither ``grad`` nor anything else."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            self.step_group(group, [param for param in group["params"] if param.grad is not None])

    def step_group(self, group: dict[str, Any], params: list[Parameter]) -> None:
        for param in params:
            weights, grad, state = as_float32(param.detach()), gradient(param), self.state[param]
            if not state:
                state.update({name: torch.zeros_like(weights) for name in self.moments})
            self.update(weights, grad, state, group)
            if param.dtype in HALF:
                param.copy_(weights)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the base class, but without rounding float32 states of half-precision parameters to their type."""
        undecorated(torch.optim.Optimizer.load_state_dict)(self, {**state_dict, "state": {}})
        for stored, own in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for index, param in zip(stored["params"], own["params"], strict=True):
                if index in state_dict["state"]:
                    entry = state_dict["state"][index]
                    self._check_entry(entry, index)
                    self.state[param] = {name: _placed(value, param) for name, value in entry.items()}

    def _check_entry(self, entry: dict[str, Any], index: int) -> None:
        missing = [name for name in self.moments if name not in entry]
        if missing:
            raise CheckpointError(
                f"the optimizer state of the checkpoint has no {' and '.join(missing)} for parameter {index}: it was "
                f"not written by {type(self).__name__}; start it afresh with --reset-optimizer"
            )


def as_float32(tensor: Tensor) -> Tensor:
    """``tensor``, in float32 if it is of half precision."""
    return tensor.float() if tensor.dtype in HALF else tensor


def gradient(param: Parameter) -> Tensor:
    """The gradient of ``param``, at least float32."""
    assert param.grad is not None
    if param.grad.is_sparse:
        raise ConfigError("this optimizer does not support sparse gradients; use --optimizer adagrad")
    return as_float32(param.grad)


def _placed(value: Any, param: Tensor) -> Any:
    """A stored value on the device of ``param``, a copy in at least float32."""
    if not torch.is_tensor(value):
        return value
    return as_float32(value).to(param.device, copy=True)
