"""Attention backends: one computation, several ways to it, chosen by name or automatically.

Every backend gives ``softmax(q k' / sqrt(D) + bias, padded keys left out) v``, with dropout of the probabilities, for
q, k, v (B, H, T, D). ``eager`` is the reference implementation; none of the others makes a bias by positions that grows
with the batch.

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
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.attention_bias import ALiBi
from fairseq.modules.dropout import dropout as drop
from fairseq.modules.slots import AttentionBias, ContentBias
from fairseq.ops import library
from fairseq.ops.alibi_attention import alibi_attention
from fairseq.ops.packed_attention import packed_attention
from fairseq.registry import nearest

Bias = AttentionBias | ContentBias
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Terms:
    """What changes the scores of a call beside q and k; ``longest`` is its longest sequence."""

    bias: Bias | None = None
    padding: Tensor | None = None
    longest: int = 0
    cache: dict[Any, Any] = field(default_factory=dict)

    def dense(self, q: Tensor, k: Tensor) -> Tensor | None:
        """The bias as (1 or B, 1 or H, T, T), made only if a backend asks: not every one needs it."""
        if self.bias is None:
            return None
        if isinstance(self.bias, ContentBias):
            return self.bias.scores(q, k)
        tokens = q.size(-2)
        longest = max(tokens, self.longest)
        if torch.compiler.is_compiling():  # a key with a length in it would compile the layer again for each length
            return self.bias.dense(longest, q.device, q.dtype)[:, :tokens, :tokens].unsqueeze(0)
        key = (self.bias, longest, q.device, q.dtype)
        if key not in self.cache:
            self.cache[key] = self.bias.dense(longest, q.device, q.dtype)
        return self.cache[key][:, :tokens, :tokens].unsqueeze(0)

    def key_mask(self) -> Tensor | None:
        """(B, 1, 1, T), True = may be attended to, as ``scaled_dot_product_attention`` wants it."""
        return None if self.padding is None else ~self.padding[:, None, None, :]


Backend = Callable[[Tensor, Tensor, Tensor, Terms, float], Tensor]


def attend_eager(q: Tensor, k: Tensor, v: Tensor, terms: Terms, dropout: float) -> Tensor:
    """The reference implementation. A sequence that is all padding gives zeros."""
    scores = torch.matmul(q * q.size(-1) ** -0.5, k.transpose(-2, -1))  # (B, H, T, T)
    bias = terms.dense(q, k)
    if bias is not None:
        scores = scores + bias
    at_least_float32 = torch.promote_types(scores.dtype, torch.float32)
    if terms.padding is not None:
        padded = terms.padding[:, None, None, :]
        # The lowest finite number, not -inf, keeps sequences without any key free of NaN, gradients included.
        scores = scores.masked_fill(padded, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32).masked_fill(padded, 0.0)
    else:
        weights = torch.softmax(scores, dim=-1, dtype=at_least_float32)
    weights = drop(weights.to(v.dtype), dropout, training=dropout > 0)
    return torch.matmul(weights, v)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, terms: Terms, dropout: float) -> Tensor:
    """torch's own kernels.

    They take one mask, and a bias with padding in it would be (B, H, T, T). So padding becomes a feature instead: keys
    get one that is very negative for padding, and queries a one to multiply it with.
    """
    bias, padding = terms.dense(q, k), terms.padding
    if bias is None or padding is None:
        mask = terms.key_mask() if bias is None else bias
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    width, extra = q.size(-1), 8 - q.size(-1) % 8  # kernels want multiples of 8, and one width for q, k and v
    lowest = -30000.0 if q.dtype == torch.float16 else -1e30
    one = (torch.arange(extra, device=q.device) == 0).to(q.dtype)
    hidden = torch.where(padding, lowest, 0.0).to(k.dtype)[:, None, :, None] * one  # (B, 1, T, extra)
    q = torch.cat([q, one.expand(*q.shape[:-1], extra)], dim=-1)
    k = torch.cat([k, hidden.expand(*k.shape[:-1], extra)], dim=-1)
    out = F.scaled_dot_product_attention(
        q, k, F.pad(v, (0, extra)), attn_mask=bias, dropout_p=dropout, scale=width**-0.5
    )
    return out[..., :width].masked_fill(padding.all(dim=1)[:, None, None, None], 0.0)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, terms: Terms, dropout: float) -> Tensor:
    """FlexAttention: compiled into one kernel with the score function on CUDA; on the CPU uncompiled, for tests."""
    if dropout > 0:
        raise ConfigError(
            "attention backend 'flex' has no dropout: set attention_dropout to 0, or choose fused or sdpa"
        )
    bias, padding = terms.bias, terms.padding
    slopes = bias.slope_tensor(q.device) if isinstance(bias, ALiBi) else None
    ahead = 0.5 * bias.asymmetrical if isinstance(bias, ALiBi) else 0.0
    dense = terms.dense(q, k) if slopes is None else None
    lowest = torch.finfo(q.dtype).min

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if slopes is not None:
            s = s - slopes[h] * torch.where(j > i, j - i - ahead, i - j)
        elif dense is not None:
            s = s + dense[b % dense.size(0), h % dense.size(1), i, j]
        return s if padding is None else torch.where(padding[b, j], lowest, s)

    out = _flex_attention(q.device.type == "cuda")(q, k, v, score_mod=score)
    return out if padding is None else out.masked_fill(padding.all(dim=1)[:, None, None, None], 0.0)


@functools.cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # imports sympy and more: a second

    return torch.compile(flex_attention) if compiled else flex_attention


def attend_fused(q: Tensor, k: Tensor, v: Tensor, terms: Terms, dropout: float) -> Tensor:
    """Our operator. Its seed is drawn from the device's generator, in a compiled graph too."""
    slopes, asymmetrical = _slopes(terms.bias, q)
    return alibi_attention(q, k, v, slopes, asymmetrical, terms.padding, dropout, _seed(q, dropout))


def attend_fused_packed(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, lengths: Lengths, dropout: float) -> Tensor:
    """The same for packed q, k, v (1, H, N, D)."""
    slopes, asymmetrical = _slopes(bias, q)
    return packed_attention(q, k, v, lengths, slopes, asymmetrical, dropout, _seed(q, dropout))


def _slopes(bias: Bias | None, q: Tensor) -> tuple[Tensor, bool]:
    if bias is None:
        return q.new_zeros(q.size(1), dtype=torch.float32), False
    if not isinstance(bias, ALiBi):
        raise ConfigError(
            f"attention backend 'fused' knows no bias but ALiBi, and this is {type(bias).__name__}: choose sdpa"
        )
    return bias.slope_tensor(q.device), bias.asymmetrical


def _seed(q: Tensor, dropout: float) -> Tensor | int:
    return torch.randint(1 << 62, (), device=q.device) if dropout > 0 else 0


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


def choose_backend(q: Tensor, bias: Bias | None, dropout: float) -> str:
    """The backend that ``auto`` stands for."""
    device = q.device.type
    fused = (bias is None or isinstance(bias, ALiBi)) and library.compiled_for("alibi_attention_forward", device)
    if bias is None:
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
            out = function(a, b, c, Terms(ALiBi(heads, asymmetrical=True), padding), 0.0)
            results.append([out.detach(), *torch.autograd.grad(out, (a, b, c), upstream)])
    pairs = zip(*results, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Bias | None = None,
    padding: Tensor | None = None,
    lengths: Lengths | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
    cache: dict[Any, Any] | None = None,
    token_counts: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """Attention of q, k, v (B, H, T, D) by ``backend``; of packed ones (1, H, N, D) within sequences of ``lengths``.

    ``padding`` (B, T) is True for keys to leave out. In ``cache`` tables of equal biases are kept, those without
    parameters.
    """
    name = choose_backend(q, bias, dropout) if backend == "auto" else check_backend(backend)
    if lengths is not None and name == "fused":
        return attend_fused_packed(q, k, v, bias, lengths, dropout)
    # Activation checkpointing must meet the parameters of a bias again, not a table made of them before.
    cache = {} if cache is None or isinstance(bias, nn.Module) else cache
    if lengths is None:
        return BACKENDS[name](q, k, v, Terms(bias, padding, q.size(-2), cache), dropout)
    terms = Terms(bias, None, max(lengths), cache)
    # Cut along the rows as they lie in memory, so that gradients are put together in that order too.
    mixed = []
    for part in zip(*(x.transpose(1, 2).split(lengths, dim=1) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(1, 2) for x in part)
        mixed.append(BACKENDS[name](a, b, c, terms, dropout).transpose(1, 2))
    return torch.cat(mixed, dim=1).transpose(1, 2)
