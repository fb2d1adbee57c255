"""Dropout that is quick, alone and with what follows it: residual connection and layer norm.

torch draws one float a number on the CPU, which takes longer than many of the layers it follows, and reads and writes
everything several times on CUDA. Here the mask is computed from a seed, in the forward and again in the backward pass:
see ``fairseq.ops.residual``. The seed comes from torch's generator of the device, so that a run that is resumed goes on
exactly. Compiled graphs, and devices without a kernel for this, use torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.ops import library, residual

_STEPS = 1 << 16


def rounded(p: float) -> float:
    """The probability that is used for ``p`` here: the nearest multiple of 2^-16."""
    return round(p * _STEPS) / _STEPS


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``, quicker (with other random numbers)."""
    if not training or p <= 0:
        return x
    return residual.dropout_add(x, None, p, _seed(x)) if _own(x) else F.dropout(x, p)


def dropout_add(x: Tensor, base: Tensor, p: float, training: bool) -> Tensor:
    """``base + dropout(x)``."""
    if not training or p <= 0:
        return base + x
    if _own(x) and x.dtype == base.dtype:
        return residual.dropout_add(x, base, p, _seed(x))
    return base + dropout(x, p, training)


def dropout_add_norm(x: Tensor, base: Tensor, norm: nn.Module, p: float, training: bool) -> Tensor:
    """``norm(base + dropout(x))``, in one pass for plain layer norms where there is a kernel."""
    fused = _own(x) and library.has_kernel("dropout_add_layer_norm_forward", x.device, x.dtype)
    if not (fused and isinstance(norm, nn.LayerNorm) and _fits(norm, x, base)):
        return norm(dropout_add(x, base, p, training))
    p = p if training else 0.0
    return residual.dropout_add_layer_norm(x, base, norm.weight, norm.bias, norm.eps, p, _seed(x) if p > 0 else _ZERO)


_ZERO = torch.zeros((), dtype=torch.int64)


def _seed(x: Tensor) -> Tensor:
    return torch.randint(1 << 62, (), device=x.device)


def _own(x: Tensor) -> bool:
    """Whether the mask of ``x`` is computed from a seed; on the CPU it is, with and without a kernel."""
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" or library.has_kernel("dropout_add", x.device, x.dtype)


def _fits(norm: nn.LayerNorm, x: Tensor, base: Tensor) -> bool:
    """Whether ``norm`` is nothing but a layer norm of the last dimension, and the operator takes these types."""
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.shape == x.shape[-1:]
        and x.dtype == base.dtype == norm.weight.dtype
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and not torch.is_autocast_enabled(x.device.type)
    )
