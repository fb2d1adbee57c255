"""The feed-forward channel mixer, and what it is made of: activations by name, linear maps.

Legend: B batch, T tokens, C channels, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.dropout import dropout
from fairseq.modules.slots import EncoderShape
from fairseq.ops.linear import linear
from fairseq.registry import CHANNEL_MIXERS, nearest


def gelu(x: Tensor) -> Tensor:
    """Exact (erf) gelu, computed in float32 and rounded back.

    torch's kernels do that for bfloat16 and float16 without a float32 copy; a test holds them to it.
    """
    return F.gelu(x)


def gelu_accurate(x: Tensor) -> Tensor:
    """The tanh approximation of gelu."""
    return F.gelu(x, approximate="tanh")


def identity(x: Tensor) -> Tensor:
    return x


def relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).pow(2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": gelu,
    "gelu_fast": gelu_accurate,
    "gelu_accurate": gelu_accurate,
    "relu_squared": relu_squared,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "linear": identity,
}


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The function called ``activation``. Raises ConfigError with the known names."""
    if activation not in ACTIVATIONS:
        known = list(ACTIVATIONS)
        raise ConfigError(f"unknown activation {activation!r}{nearest(activation, known)} Known: {', '.join(known)}")
    return ACTIVATIONS[activation]


class Linear(nn.Linear):
    """``nn.Linear`` in the quickest way the processor has: see ``fairseq.ops.linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class FeedForward(nn.Module):
    """fc2(dropout(activation(fc1 x))), position by position; (B, T, C) -> (B, T, F) -> (B, T, C)."""

    row_wise = True
    # fc1 and fc2 are named as the layer's own in every checkpoint.
    register_children_in_parent = True

    def __init__(
        self,
        dim: int,
        inner_dim: int,
        *,
        activation: str = "gelu",
        activation_dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = get_activation_fn(activation)
        self.activation_dropout = activation_dropout
        self.fc1 = Linear(dim, inner_dim, bias=bias)
        self.fc2 = Linear(inner_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        return self.fc2(dropout(x, self.activation_dropout, self.training))


@CHANNEL_MIXERS.register("feed_forward")
def feed_forward(shape: EncoderShape) -> FeedForward:
    return FeedForward(
        shape.dim,
        shape.ffn_dim,
        activation=shape.activation,
        activation_dropout=shape.activation_dropout,
        bias=shape.bias,
    )


@CHANNEL_MIXERS.register("none")
def no_channel_mixer(shape: EncoderShape) -> None:
    """A layer that is its token mixer alone."""
