"""Linear maps in the quickest way this processor has: ``linear``, with both gradients.

Which way is decided by the kind of processor, never by timing, so that runs on one machine are bit-identical:

- float32: MKL, which is what torch takes, reaches its full rate on Intel processors only. On AMD's (EPYC, measured) its
  kernels give about half of what oneDNN's give, so there products go through oneDNN. ``FAIRSEQ_LINEAR=mkl`` or
  ``onednn`` in the environment decides otherwise.
- bfloat16 without instructions for it: products of float32 copies, rounded once. Native kernels add up in float32 too,
  so the numbers are the same, at nearly the speed of float32; weights, activations and gradients keep their size.
- everything else is ``F.linear``.

Legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.ops import library

LIBRARIES = ("mkl", "onednn")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: (..., I) and (O, I) to (..., O)."""
    if _stock(x, weight):
        return F.linear(x, weight, bias)
    return torch.ops.fairseq.linear.default(x, weight, bias)


@functools.cache
def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiplies(x: Tensor) -> bool:
    """Whether products in the type of ``x`` are quick where it is, so that float32 copies would not pay."""
    return x.device.type != "cpu" or x.dtype.itemsize >= 4 or (x.dtype == torch.bfloat16 and has_native_bfloat16())


@functools.cache
def float32_library() -> str:
    """``mkl`` or ``onednn``: what multiplies float32 matrices on the CPU."""
    asked = os.environ.get("FAIRSEQ_LINEAR")
    if asked is not None and asked not in LIBRARIES:
        raise ConfigError(f"FAIRSEQ_LINEAR must be mkl or onednn, but is {asked!r} in the environment")
    if os.environ.get("FAIRSEQ_NATIVE") == "0" or not torch.backends.mkldnn.is_available():
        return "mkl"
    return asked or ("onednn" if processor_vendor() == "AuthenticAMD" else "mkl")


@functools.cache
def processor_vendor() -> str:
    """As Linux names it: ``GenuineIntel``, ``AuthenticAMD``, ... or nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _stock(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # the compiler chooses
        return True
    if x.device.type != "cpu" or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return True
    if x.dtype == torch.float32:
        return float32_library() == "mkl"
    return x.dtype != torch.bfloat16 or has_native_bfloat16() or os.environ.get("FAIRSEQ_NATIVE") == "0"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b' for a (N, I) and b (O, I), each of them or its transpose dense, in the type of both."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and float32_library() == "onednn" and a.numel():
        return torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def linear_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output in the type of ``x``; half precision through float32."""
    if x.dtype.itemsize < 4:
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    out = product(x.reshape(-1, x.size(-1)), weight).view(*x.shape[:-1], len(weight))
    return out if bias is None else out.add_(bias)


def linear_backward_kernel(
    grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; those not asked for are empty (the bias goes with the weight)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    up, nothing = grad.reshape(-1, grad.size(-1)).to(wide), x.new_empty(0)
    dx = product(up, weight.to(wide).t()).to(x.dtype).view(x.shape) if for_x else nothing
    if not for_weight:
        return dx, nothing, nothing.clone()
    rows = x.reshape(-1, x.size(-1)).to(wide)
    return dx, product(up.t(), rows.t()).to(weight.dtype), up.sum(0).to(weight.dtype)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if for_x else 0)
    return dx, x.new_empty(weight.shape if for_weight else 0), x.new_empty(weight.size(0) if for_weight else 0)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
    operator = torch.ops.fairseq.linear_backward.default
    dx, dweight, dbias = operator(grad, *ctx.saved_tensors, for_x, for_weight or for_bias)
    return dx if for_x else None, dweight if for_weight else None, dbias if for_bias else None


library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", linear_kernel, _fake)
library.define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool for_x, bool for_weight) -> (Tensor, Tensor, Tensor)",
    linear_backward_kernel,
    _backward_fake,
)
torch.library.register_autograd("fairseq::linear", _backward, setup_context=_keep_for_backward)
