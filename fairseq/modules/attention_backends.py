"""Attention backends: one computation, several ways to it, chosen by name or automatically.

Every backend gives ``softmax(q k' / sqrt(D) + bias, padded keys left out) v``, with dropout of the probabilities, for q,
k, v (B, H, T, D) and what the layers share (padding, bias). ``eager`` is the readable twin; none of the others makes a
bias that grows with the batch.

========  =============================================================================================================
eager     plain torch, the reference; scores (B, H, T, T) in memory
sdpa      ``scaled_dot_product_attention`` with a bias of (1, H, T, T)
flex      FlexAttention with the bias as a score function; no dropout
fused     ``fairseq.ops.alibi_attention``: bias and dropout in the kernel; ALiBi or no bias
auto      fused where it is compiled and pays, else sdpa; on CUDA only what a one-time check against eager allows
========  =============================================================================================================

Legend: B batch, T tokens, H heads, D head width.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.modules.attention_bias import ALiBi
from fairseq.modules.dropout import dropout as drop
from fairseq.modules.encoder import EncoderContext
from fairseq.ops import library
from fairseq.ops.alibi_attention import alibi_attention
from fairseq.ops.packed_attention import packed_attention
from fairseq.registry import nearest

Backend = Callable[[Tensor, Tensor, Tensor, EncoderContext, float], Tensor]


def attend_eager(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """The readable twin. A sequence that is all padding gives zeros."""
    scores = torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-2, -1))  # (B, H, T, T)
    bias = context.dense_bias(q)
    if bias is not None:
        scores = scores + bias
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    if context.padding is not None:
        padded = context.padding[:, None, None, :]
        # The lowest finite number, not -inf, keeps sequences without any key free of NaN, gradients included.
        scores = scores.masked_fill(padded, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32).masked_fill(padded, 0.0)
    else:
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32)
    weights = drop(weights.to(v.dtype), dropout, training=dropout > 0)
    return torch.matmul(weights, v)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """torch's own kernels.

    They take one mask, and a bias with padding in it would be (B, H, T, T). So padding becomes a feature instead: keys
    get one that is very negative for padding, and queries a one to multiply it with.
    """
    bias, padding = context.dense_bias(q), context.padding
    if bias is None or padding is None:
        mask = context.key_mask() if bias is None else bias.unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    width, extra = q.size(-1), 8 - q.size(-1) % 8  # kernels want multiples of 8, and one width for q, k and v
    lowest = -30000.0 if q.dtype == torch.float16 else -1e30
    one = torch.zeros(extra, dtype=q.dtype, device=q.device)
    one[0] = 1
    hidden = torch.where(padding, lowest, 0.0).to(k.dtype)[:, None, :, None] * one  # (B, 1, T, extra)
    q = torch.cat([q, one.expand(*q.shape[:-1], extra)], dim=-1)
    k = torch.cat([k, hidden.expand(*k.shape[:-1], extra)], dim=-1)
    mask, scale = bias.unsqueeze(0), width**-0.5
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, extra)), attn_mask=mask, dropout_p=dropout, scale=scale)
    return out[..., :width].masked_fill(padding.all(dim=1)[:, None, None, None], 0.0)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """FlexAttention: compiled into one kernel with the score function on CUDA; on the CPU uncompiled, for tests."""
    if dropout > 0:
        raise ConfigError(
            "attention backend 'flex' has no dropout: set attention_dropout to 0, or choose fused or sdpa"
        )
    bias, padding = context.attention_bias, context.padding
    slopes = bias.slope_tensor(q.device) if isinstance(bias, ALiBi) else None
    ahead = 0.5 * bias.asymmetrical if isinstance(bias, ALiBi) else 0.0
    dense = context.dense_bias(q) if slopes is None else None
    lowest = torch.finfo(q.dtype).min

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if slopes is not None:
            s = s - slopes[h] * torch.where(j > i, j - i - ahead, i - j)
        elif dense is not None:
            s = s + dense[h % dense.size(0), i, j]
        return s if padding is None else torch.where(padding[b, j], lowest, s)

    out = _flex_attention(q.device.type == "cuda")(q, k, v, score_mod=score)
    return out if padding is None else out.masked_fill(padding.all(dim=1)[:, None, None, None], 0.0)


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # imports sympy and more: a second

    return torch.compile(flex_attention) if compiled else flex_attention


def attend_fused(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float) -> Tensor:
    """Our operator. Its seed is drawn from the device's generator, in a compiled graph too."""
    bias = context.attention_bias
    if not fused_knows(context):
        raise ConfigError(
            f"attention backend 'fused' knows no bias but ALiBi, and this is {type(bias).__name__}: choose sdpa"
        )
    slopes = bias.slope_tensor(q.device) if isinstance(bias, ALiBi) else q.new_zeros(q.size(1), dtype=torch.float32)
    asymmetrical = isinstance(bias, ALiBi) and bias.asymmetrical
    seed = torch.randint(1 << 62, (), device=q.device) if dropout > 0 else 0
    if context.packing is not None:
        return packed_attention(q, k, v, context.packing.lengths, slopes, asymmetrical, dropout, seed)
    return alibi_attention(q, k, v, slopes, asymmetrical, context.padding, dropout, seed)


def fused_knows(context: EncoderContext) -> bool:
    """Whether the operator has the bias of this pass."""
    return context.attention_bias is None or isinstance(context.attention_bias, ALiBi)


BACKENDS: dict[str, Backend] = {
    "eager": attend_eager,
    "sdpa": attend_sdpa,
    "flex": attend_flex,
    "fused": attend_fused,
}


def check_backend(name: str) -> str:
    """``name`` if it is ``auto`` or a backend; ConfigError with the known names otherwise."""
    known = ["auto", *BACKENDS]
    if name not in known:
        raise ConfigError(f"unknown attention backend {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
    return name


def choose(q: Tensor, context: EncoderContext, dropout: float) -> str:
    """The backend that ``auto`` stands for."""
    device = q.device.type
    fused = fused_knows(context) and library.compiled_for("alibi_attention_forward", device)
    if context.attention_bias is None:
        # On the CPU torch has no dropout without (B, H, T, T), and half precision is slow without instructions for it.
        slow = device == "cpu" and (dropout > 0 or q.dtype.itemsize < 4)
        return "fused" if fused and slow else "sdpa"
    if device == "cpu" or q.dtype == torch.float64:
        return "fused" if fused and device == "cpu" else "sdpa"
    if dropout == 0 and works_like_eager("flex", device, q.dtype):
        return "flex"
    return "fused" if fused and works_like_eager("fused", device, q.dtype) else "sdpa"


@torch.compiler.assume_constant_result
def works_like_eager(name: str, device: str, dtype: torch.dtype) -> bool:
    """What `_tried` found, the first time; also while a graph is compiled."""
    return _tried(name, device, dtype)


@functools.cache
def _tried(name: str, device: str, dtype: torch.dtype) -> bool:
    """Run ``name`` once, forward and backward, on a small odd problem; whether it gives what ``eager`` gives.

    Compilers and drivers differ between machines, so a backend that was never tried on this one is not trusted. Says
    why, once, when it is not used.
    """
    try:
        worst = _difference_from_eager(BACKENDS[name], device, dtype)
    except Exception as error:  # whatever a compiler raises, there is another way
        warnings.warn(f"attention backend {name!r} is not used: it fails here ({str(error).splitlines()[:1]})")
        return False
    limit = 64 * torch.finfo(dtype).eps
    if not worst <= limit:  # NaN counts as wrong
        warnings.warn(
            f"attention backend {name!r} is not used: it differs from eager by {worst:.2g}, more than {limit:.2g}"
        )
        return False
    return True


def _difference_from_eager(backend: Backend, device: str, dtype: torch.dtype) -> float:
    """The largest difference in the output and the gradients, relative to the largest number of each."""
    generator = torch.Generator().manual_seed(1)
    batch, heads, tokens, width = 2, 3, 150, 64
    tensors = [torch.randn(batch, heads, tokens, width, generator=generator) for _ in range(4)]
    q, k, v, upstream = (x.to(device, dtype) for x in tensors)
    padding = (torch.arange(tokens) >= tokens - 20).expand(batch, -1).to(device)
    results = []
    with torch.enable_grad():
        for function in (backend, attend_eager):
            a, b, c = (x.clone().requires_grad_() for x in (q, k, v))
            out = function(a, b, c, EncoderContext(padding, ALiBi(heads, asymmetrical=True)), 0.0)
            results.append([out.detach(), *torch.autograd.grad(out, (a, b, c), upstream)])
    pairs = zip(*results, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


def attend(q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, dropout: float, backend: str = "auto") -> Tensor:
    """Attention of q, k, v (B, H, T, D) by ``backend``; of packed ones (1, H, N, D) within each sequence."""
    name = choose(q, context, dropout) if backend == "auto" else check_backend(backend)
    if context.packing is None or name == "fused":
        return BACKENDS[name](q, k, v, context, dropout)
    # Cut along the rows as they lie in memory, so that gradients are put together in that order too.
    split = context.packing.split
    mixed = []
    for part in zip(split(q.transpose(1, 2)), split(k.transpose(1, 2)), split(v.transpose(1, 2)), strict=True):
        a, b, c = (x.transpose(1, 2) for x in part)
        mixed.append(BACKENDS[name](a, b, c, context, dropout).transpose(1, 2))
    return torch.cat(mixed, dim=1).transpose(1, 2)
