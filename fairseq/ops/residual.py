"""Dropout, residual connection and layer norm in one pass: ``dropout_add`` and ``dropout_add_layer_norm``.

The dropout mask is computed from a seed by a counter-based generator, in the forward pass and again in the backward
pass, so nothing of the size of the activations is kept but the inputs, which other operators keep anyway. Kernels:
``fairseq/csrc/torch/residual_cpu.cpp``, ``fairseq/ops/triton/residual_kernels.py``; elsewhere the reference
implementations run.

Legend: N rows, C columns (the last dimension; all others make rows).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.alibi_attention import dropout_factors


def dropout_add(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    """residual + dropout(x), (..., C), with float32 sums inside; ``residual`` None adds nothing.

    ``p`` is rounded to a multiple of 2^-16, what is kept is scaled by the inverse of its share. ``seed`` is one int64:
    the mask depends on it, the row and the column only.
    """
    return torch.ops.fairseq.dropout_add.default(x, residual, p, seed)


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, seed: Tensor
) -> Tensor:
    """``layer_norm(residual + dropout(x), weight, bias, eps)``, the sum kept in float32; ``weight`` and ``bias`` (C,)."""
    return torch.ops.fairseq.dropout_add_layer_norm_forward.default(x, residual, weight, bias, eps, p, seed)[0]


def factors(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """What ``x`` (..., C) is multiplied by: 0 for dropped elements, 1 / (1 - p) for the others; float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if p == 0:
        return torch.ones((), dtype=wide, device=x.device)
    columns = x.size(-1) if x.dim() else 1
    rows = x.numel() // max(columns, 1)
    return dropout_factors(x.new_empty(1, 1, rows, columns, dtype=wide), p, seed).view(x.shape)


def dropout_add_reference(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    dropped = x.to(wide) * factors(x, p, seed)
    return (dropped if residual is None else residual.to(wide) + dropped).to(x.dtype)


def layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalized sum, and the mean and the inverse deviation of each row (N,); differentiable."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z = residual.to(wide) + x.to(wide) * factors(x, p, seed)
    mean = z.mean(-1, keepdim=True)
    rstd = ((z - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    out = ((z - mean) * rstd * weight.to(wide) + bias.to(wide)).to(x.dtype)
    return out.contiguous(), mean.flatten(), rstd.flatten()


def layer_norm_backward_reference(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (empty without dropout: that of residual serves both), residual, weight and bias."""
    wide, rows = mean.dtype, (*x.shape[:-1], 1)
    scale = factors(x, p, seed)
    mean, rstd, up = mean.view(rows), rstd.view(rows), grad.to(wide)
    normal = (residual.to(wide) + x.to(wide) * scale - mean) * rstd
    inner = up * weight.to(wide)
    dz = (inner - inner.mean(-1, keepdim=True) - normal * (inner * normal).mean(-1, keepdim=True)) * rstd
    dx = (dz * scale).to(x.dtype) if _threshold(p) else x.new_empty(0)
    every = list(range(x.dim() - 1))
    dweight, dbias = ((up * normal).sum(every), up.sum(every)) if every else (up * normal, up.clone())
    return dx.contiguous(), dz.to(x.dtype).contiguous(), dweight.to(x.dtype), dbias.to(x.dtype)


def _threshold(p: float) -> int:
    return int(p * 65536 + 0.5)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _dropout_add_fake(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    return _like(x)


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.new_empty(x.numel() // max(x.size(-1), 1), dtype=wide)
    return _like(x), rows, torch.empty_like(rows)


def _backward_fake(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(x) if _threshold(p) else x.new_empty(0), _like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep_seed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, residual, ctx.p, seed = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(seed)


def _dropout_add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    dx = dropout_add(grad, None, ctx.p, seed) if _threshold(ctx.p) else grad
    return dx, grad if ctx.residual else None, None, None


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _, _, ctx.p, seed = inputs
    ctx.save_for_backward(x, residual, weight, output[1], output[2], seed)


def _layer_norm_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    operator = torch.ops.fairseq.dropout_add_layer_norm_backward.default
    dx, dresidual, dweight, dbias = operator(grad, *tensors, ctx.p, seed)
    return dx if _threshold(ctx.p) else dresidual, dresidual, dweight, dbias, None, None, None


library.define(
    "dropout_add(Tensor x, Tensor? residual, float p, Tensor seed) -> Tensor", dropout_add_reference, _dropout_add_fake
)
library.define(
    "dropout_add_layer_norm_forward(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float p, "
    "Tensor seed) -> (Tensor, Tensor, Tensor)",
    layer_norm_reference,
    _forward_fake,
)
library.define(
    "dropout_add_layer_norm_backward(Tensor grad, Tensor x, Tensor residual, Tensor weight, Tensor mean, Tensor rstd, "
    "float p, Tensor seed) -> (Tensor, Tensor, Tensor, Tensor)",
    layer_norm_backward_reference,
    _backward_fake,
)
library.define_on_cuda("dropout_add", "residual", dropout_add_reference)
library.define_on_cuda("dropout_add_layer_norm_forward", "residual", layer_norm_reference)
library.define_on_cuda("dropout_add_layer_norm_backward", "residual", layer_norm_backward_reference)
torch.library.register_autograd("fairseq::dropout_add", _dropout_add_backward, setup_context=_keep_seed)
torch.library.register_autograd(
    "fairseq::dropout_add_layer_norm_forward", _layer_norm_backward, setup_context=_keep_for_backward
)
library.load()
