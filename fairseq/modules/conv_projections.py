"""Convolutions along sequences, and the projections of attention that are made of them.

After BERT with convolutions (Chang et al. 2021, ACL). Nothing crosses the borders of a sequence: beyond them, and at
padding, there are zeros.

Legend: B batch, T tokens, C channels, A channels of all heads, w reach, N tokens of a packed batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.conv_grammar import Projection
from fairseq.modules.feed_forward import Linear, identity
from fairseq.modules.slots import EncoderContext


class SequenceConv(nn.Conv1d):
    """Cross-correlation over 2w + 1 tokens: x (B, T, C_in) -> (B, T, C_out), or packed (1, N, C_in) -> (1, N, C_out).

    Weights and biases begin uniform, within one over the root of the inputs of an output, as ``nn.Conv1d`` has them: BERT's
    way of drawing linear maps leaves them alone.
    """

    def __init__(self, in_dim: int, out_dim: int, reach: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(in_dim, out_dim, 2 * reach + 1, padding=reach, groups=groups, bias=bias)
        self.reach = reach

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:  # type: ignore[override]
        if context.lengths is None:
            padding = context.padding
            return self._along(x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0))
        # Zeros between the sequences, as many as the reach, do what the ends of a padded batch do.
        places = _places_apart(context, self.reach, x.size(1))
        width = x.size(1) + self.reach * (len(context.lengths) - 1)
        apart = x.new_zeros(1, width, x.size(2)).index_copy(1, places, x)
        return self._along(apart).index_select(1, places)

    def _along(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _places_apart(context: EncoderContext, gap: int, tokens: int) -> Tensor:
    """(N,): where ``tokens`` of packed sequences go when ``gap`` places are left between any two sequences."""
    key = (_places_apart, gap)
    if key not in context.cache:
        assert context.lengths is not None
        if context.starts is not None:  # on a device, which knows the sequences itself
            at = torch.arange(tokens, dtype=torch.int32, device=context.starts.device)
            number = torch.searchsorted(context.starts[1:].contiguous(), at, right=True)
        else:
            lengths = torch.tensor(context.lengths)
            number = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        context.cache[key] = torch.arange(tokens, device=number.device) + gap * number
    return context.cache[key]


class ConvProjection(nn.Module):
    """A convolution in place of a linear map: x (B, T, C) -> (B, T, A), for attention heads side by side.

    Depthwise, an activation and a linear map ``pointwise`` follow it; ``mixed``, it makes the first half of the channels
    only, and the map ``linear`` the other.
    """

    def __init__(
        self, dim: int, out_dim: int, projection: Projection, activation: Callable[[Tensor], Tensor], bias: bool
    ) -> None:
        super().__init__()
        assert projection.reach is not None
        depthwise, mixed = projection.kind == "depthwise", projection.mixed
        if mixed and out_dim % 2:
            raise ConfigError(
                f"mixed projections need an even number of channels in all heads, but there are {out_dim}"
            )
        half = out_dim // 2 if mixed else out_dim
        width, groups = (out_dim, dim) if depthwise else (half, projection.groups)
        if dim % groups or width % groups:
            raise ConfigError(
                f"a convolution from {dim} to {width} channels cannot have {groups} groups, which must divide both: change "
                "its groups, model.encoder_embed_dim or model.conv_attention_head_dim"
            )
        self.conv = SequenceConv(dim, width, projection.reach, groups, bias)
        self.activation = activation if depthwise and projection.activation else identity
        self.pointwise = Linear(width, half, bias=bias) if depthwise else None
        self.linear = Linear(dim, out_dim - half, bias=bias) if mixed else None

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        y = self.activation(self.conv(x, context))
        y = y if self.pointwise is None else self.pointwise(y)
        return y if self.linear is None else torch.cat([y, self.linear(x)], dim=-1)


def build_projection(
    dim: int, out_dim: int, projection: Projection, activation: Callable[[Tensor], Tensor], bias: bool
) -> nn.Module | None:
    """The module for ``projection``; None for no projection, which keeps the channels as they are."""
    if projection.convolves:
        return ConvProjection(dim, out_dim, projection, activation, bias)
    if projection.kind == "linear":
        return Linear(dim, out_dim, bias=bias)
    if dim != out_dim:
        raise ConfigError(
            f"without projections queries and keys are the {dim} channels of the encoder, but all heads together have "
            f"{out_dim}: leave out model.conv_attention_head_dim"
        )
    return None


def project(projection: nn.Module | None, x: Tensor, context: EncoderContext) -> Tensor:
    if isinstance(projection, ConvProjection):
        return projection(x, context)
    return x if projection is None else projection(x)
