"""Activation functions by the names of the configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.registry import nearest


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) gelu, computed in float32 and rounded back.

    torch's kernels do that for bfloat16 and float16 without a float32 copy; a test holds them to it.
    """
    return F.gelu(x)


def gelu_accurate(x: Tensor) -> Tensor:
    """The tanh approximation of gelu."""
    return F.gelu(x, approximate="tanh")


def linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": gelu,
    "gelu_fast": gelu_accurate,
    "gelu_accurate": gelu_accurate,
    "tanh": torch.tanh,
    "linear": linear,
}


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The function called ``activation``. Raises ConfigError with the known names."""
    if activation not in ACTIVATIONS:
        known = list(ACTIVATIONS)
        raise ConfigError(f"unknown activation {activation!r}{nearest(activation, known)} Known: {', '.join(known)}")
    return ACTIVATIONS[activation]
