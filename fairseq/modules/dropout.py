"""Dropout that is quick on the CPU.

torch draws one float a number there, which takes longer than many of the layers it follows. Here one 64-bit random
word serves four numbers: each is dropped when its 16 bits fall below p, rounded to a multiple of 2^-16. Scaling is by
the probability that results, so the expectation is exact. Other devices, and compiled graphs, use torch's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 1 << 16


def rounded(p: float) -> float:
    """The probability that is used for ``p``: the nearest multiple of 2^-16."""
    return round(p * _STEPS) / _STEPS


def keep_mask(
    shape: tuple[int, ...] | torch.Size, p: float, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """A CPU tensor of ones, and of zeros with probability ``rounded(p)``. (Multiplying by a boolean is slower.)"""
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64)
    words.random_(-(1 << 63), None, generator=generator)
    bits = words.view(torch.int16)[:count].view(shape)
    mask = torch.empty(shape, dtype=dtype)
    threshold = round(p * _STEPS) - _STEPS // 2
    return mask.zero_() if threshold >= _STEPS // 2 else torch.ge(bits, threshold, out=mask)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.scale = 1 / (1 - rounded(p)) if rounded(p) < 1 else 0.0
        mask = keep_mask(x.shape, p, x.dtype)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (mask,) = ctx.saved_tensors
        return (grad * mask) * ctx.scale, None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``, quicker on the CPU (with other random numbers)."""
    if not training or p <= 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    return _Dropout.apply(x, p)
