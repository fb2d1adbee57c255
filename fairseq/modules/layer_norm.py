"""Layer normalisation over the channels."""

from __future__ import annotations

from torch import nn


def LayerNorm(
    normalized_shape: int, eps: float = 1e-5, elementwise_affine: bool = True, export: bool = False
) -> nn.LayerNorm:
    """``torch.nn.LayerNorm`` under the old name; ``export`` chose between two implementations and is ignored."""
    return nn.LayerNorm(normalized_shape, eps, elementwise_affine)
