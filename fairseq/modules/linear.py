"""Linear maps, quick in bfloat16 on processors that have no instructions for it.

There a bfloat16 product takes several times as long as a float32 one. Multiplying float32 copies and rounding the
result once gives the same numbers (native kernels also add up in float32) at nearly the speed of float32, while
weights, activations and gradients keep the size of bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@functools.cache
def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _ByFloat32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.float()
        rows = grad.reshape(-1, grad.size(-1))
        dx = torch.matmul(grad, weight.float()).to(x.dtype) if ctx.needs_input_grad[0] else None
        dweight = dbias = None
        if ctx.needs_input_grad[1]:
            dweight = torch.mm(rows.t(), x.reshape(-1, x.size(-1)).float()).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(dim=0).to(weight.dtype)
        return dx, dweight, dbias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` in the quickest way this processor has."""
    if (
        x.dtype == torch.bfloat16
        and weight.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not has_native_bfloat16()
    ):
        return _ByFloat32.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` through ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
