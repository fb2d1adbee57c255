"""Attention backends: one computation, several ways to it, chosen by name or automatically.

Every backend gives ``softmax(q k' / sqrt(D) + bias, padded keys left out) v``, with dropout of the probabilities, for
q, k, v (B, H, T, D). ``eager`` is the reference implementation; none of the others makes a bias by positions that grows
with the batch.

========  =============================================================================================================
eager     plain torch, the reference; scores (B, H, T, T) in memory
sdpa      ``scaled_dot_product_attention`` with a bias of (1, H, T, T)
flex      FlexAttention with the bias as a score function; no dropout
fused     ``fairseq.ops.alibi_attention``: bias and dropout in the kernel; ALiBi or no bias
triton    ``fairseq.ops.flash_attention``: the same for CUDA, no scores in memory; padding at the end, or packed
auto      fused where it is compiled and pays, else sdpa; on CUDA triton where it applies, else flex, fused or sdpa; of
          these only what a one-time check allows
========  =============================================================================================================

Legend: B batch, T tokens, H heads, D head width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
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
from fairseq.ops import flash_attention as flash
from fairseq.ops import library
from fairseq.ops.alibi_attention import alibi_attention, forward_reference
from fairseq.ops.packed_attention import packed_attention
from fairseq.ops.tensorfloat import precision
from fairseq.registry import nearest

Bias = AttentionBias | ContentBias
Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Terms:
    """What changes the scores of a call beside q and k; ``longest`` is its longest sequence.

    ``token_counts`` (B,) int32 are the tokens of every sequence, where all padding comes at the end; ``starts`` (B + 1,)
    int32 say where packed sequences begin and end. Both are on the device. ``seed`` of the dropout mask: drawn for None.
    """

    bias: Bias | None = None
    padding: Tensor | None = None
    longest: int = 0
    cache: dict[Any, Any] = field(default_factory=dict)
    token_counts: Tensor | None = None
    starts: Tensor | None = None
    seed: Tensor | None = None

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
    slopes, asymmetrical = _slopes("fused", terms.bias, q)
    seed = _seed(q, dropout) if terms.seed is None else terms.seed
    return alibi_attention(q, k, v, slopes, asymmetrical, terms.padding, dropout, seed)


def attend_fused_packed(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, lengths: Lengths, dropout: float) -> Tensor:
    """The same for packed q, k, v (1, H, N, D)."""
    slopes, asymmetrical = _slopes("fused", bias, q)
    return packed_attention(q, k, v, lengths, slopes, asymmetrical, dropout, _seed(q, dropout))


def attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Terms,
    dropout: float,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
) -> Tensor:
    """Our flash-style kernels, for padded and packed sequences; they look at lengths, not at masks.

    Tables over offsets: see ``fairseq.modules.score_tables``.
    """
    slopes, asymmetrical = (None, False) if terms.bias is None else _slopes("triton", terms.bias, q)
    counts = terms.token_counts
    if counts is None and terms.padding is not None:
        counts = _token_counts(terms.padding)
    seed = _seed(q, dropout) if terms.seed is None else terms.seed
    return flash.flash_attention(
        q,
        k,
        v,
        slopes,
        asymmetrical,
        token_counts=counts,
        starts=terms.starts,
        dropout_p=dropout,
        seed=seed,
        query_table=query_table,
        key_table=key_table,
    )


def _token_counts(padding: Tensor) -> Tensor:
    """(B,) int32 for ``padding`` (B, T) on the CPU, where looking at it costs nothing."""
    if padding.device.type == "cpu" and not torch.compiler.is_compiling():
        counts = (~padding).sum(1, dtype=torch.int32)
        if torch.equal(padding, torch.arange(padding.size(1)) >= counts[:, None]):
            return counts
    raise ConfigError(
        "attention backend 'triton' takes padding at the end of sequences only, and this is not known to be there: "
        "choose sdpa"
    )


def _slopes(name: str, bias: Bias | None, q: Tensor) -> tuple[Tensor, bool]:
    if bias is None:
        return q.new_zeros(q.size(1), dtype=torch.float32), False
    if not isinstance(bias, ALiBi):
        raise ConfigError(
            f"attention backend {name!r} knows no bias but ALiBi, and this is {type(bias).__name__}: choose sdpa"
        )
    return bias.slope_tensor(q.device), bias.asymmetrical


def _seed(q: Tensor, dropout: float) -> Tensor | int:
    return torch.randint(1 << 62, (), device=q.device) if dropout > 0 else 0


BACKENDS: dict[str, Backend] = {
    "eager": attend_eager,
    "sdpa": attend_sdpa,
    "flex": attend_flex,
    "fused": attend_fused,
    "triton": attend_triton,
}
REPRODUCIBLE = ("fused", "triton")  # their dropout masks follow from a seed
#: By how much a way of computing that is no backend by itself, but has a name, differs from its reference implementation,
#: for a device and a type; see `difference`.
CHECKS: dict[str, Callable[[str, torch.dtype], float]] = {}


def check_backend(name: str) -> str:
    """``name`` if it is ``auto`` or a backend; ConfigError with the known names otherwise."""
    known = ["auto", *BACKENDS]
    if name not in known:
        raise ConfigError(f"unknown attention backend {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
    return name


def choose_backend(
    q: Tensor, bias: Bias | None, dropout: float, *, packed: bool = False, lengths_known: bool = False
) -> str:
    """The backend that ``auto`` stands for; ``lengths_known``: on the device of q, or there is nothing to know."""
    device, where = q.device.type, str(q.device)
    alibi = isinstance(bias, ALiBi)
    fused = (bias is None or alibi) and library.compiled_for("attention_forward", device)
    # Without a bias, dropout and packing torch has the same kernels.
    flashes = device == "cuda" and lengths_known and (alibi or (bias is None and (packed or dropout > 0)))
    if flashes and flash.runs(q) and works_like_eager("triton", where, q.dtype):
        return "triton"
    if bias is None:
        # On the CPU torch has no dropout without (B, H, T, T), and half precision is slow without instructions for it.
        slow = device == "cpu" and (dropout > 0 or q.dtype.itemsize < 4)
        return "fused" if fused and slow else "sdpa"
    if device == "cpu" or q.dtype == torch.float64:
        return "fused" if fused and device == "cpu" else "sdpa"
    if dropout == 0 and works_like_eager("flex", where, q.dtype):
        return "flex"
    return "fused" if fused and works_like_eager("fused", where, q.dtype) else "sdpa"


def queries_like(x: Tensor, heads: int, width: int) -> Tensor:
    """Queries of no token, of the device and the type that those made of ``x`` (B, T, C) have."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return x.new_empty((1, heads, 0, width), dtype=dtype)


def finds_starts(q: Tensor, bias: Bias | None, dropout: float, backend: str) -> bool:
    """Whether packed sequences like ``q`` are found by ``starts`` on their device; other backends want ``lengths``."""
    if backend == "auto":
        backend = choose_backend(q, bias, dropout, packed=True, lengths_known=True)
    return backend == "triton" and flash.runs(q)


@torch.compiler.assume_constant_result
def works_like_eager(name: str, device: str, dtype: torch.dtype) -> bool:
    """What `_tried` found, the first time for this device; also while a graph is compiled."""
    return _tried(name, device, dtype)


@functools.cache
def _tried(name: str, device: str, dtype: torch.dtype) -> bool:
    """Run ``name``, forward and backward, on small odd problems; whether it gives what the reference implementation gives.

    Compilers and drivers differ between machines, so a backend that was never tried on this one is not trusted. Says
    why, once, when it is not used.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
            check = CHECKS.get(name, functools.partial(_difference_from_reference, name))
            worst = check(device, dtype)
    except Exception as error:  # whatever a compiler raises, there is another way
        warnings.warn(f"attention backend {name!r} is not used: it fails here ({str(error).splitlines()[:1]})")
        return False
    limit = _tolerance(device, dtype)
    if not worst <= limit:  # NaN counts as wrong
        warnings.warn(
            f"attention backend {name!r} is not used: it differs from eager by {worst:.2g}, more than {limit:.2g}"
        )
        return False
    return True


def _tolerance(device: str, dtype: torch.dtype) -> float:
    """4 units in the last place of the products. Right ones need one: sums are wider, and do not show.

    Where sums and exponents are of the type itself, right ones need about 8; an exponent of 30 alone is off by 30 times
    half a unit.
    """
    if dtype == torch.float32 and not device.startswith("cpu") and precision() == "tf32":
        return 4 * 2.0**-10
    return torch.finfo(dtype).eps * (4 if dtype.itemsize < 4 else 64)


def _difference_from_reference(name: str, device: str, dtype: torch.dtype) -> float:
    """The largest difference in the output and the gradients, relative to the largest number of each.

    The reference is in float64, so that what differs is the rounding of one backend, not of two. Both forms of ALiBi and
    lengths that differ; with dropout too where its masks can be had.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, 150, 64)
    numbers = [torch.randn(shape, generator=generator, device="cpu").to(device, dtype) for _ in range(4)]
    counts = torch.tensor([130, 77], dtype=torch.int32, device=device)
    padding = torch.arange(shape[2], device=device) >= counts[:, None]
    terms = Terms(padding=padding, token_counts=counts, seed=torch.tensor(0x123456789ABCDEF, device=device))
    differences = []
    for asymmetrical in (False, True):
        bias = ALiBi(shape[1], asymmetrical=asymmetrical)
        for dropout in (0.0, 0.1) if name in REPRODUCIBLE else (0.0,):
            given = dataclasses.replace(terms, bias=bias, cache={})
            found = _with_gradients(BACKENDS[name], numbers, given, dropout)
            wanted = _with_gradients(_reference, [x.double() for x in numbers], given, dropout)
            differences.append(difference(found, wanted))
    return max(differences, key=lambda x: (math.isnan(x), x))


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest one, relative to the largest number of each tensor; NaN if there is one."""
    return float(torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(found, wanted, strict=True)]).max())


def _with_gradients(backend: Backend, numbers: list[Tensor], terms: Terms, dropout: float) -> list[Tensor]:
    """The output of q, k, v and their gradients for a gradient of the output, all four ``numbers``."""
    *qkv, upstream = numbers
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = backend(leaves[0], leaves[1], leaves[2], terms, dropout)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def _reference(q: Tensor, k: Tensor, v: Tensor, terms: Terms, dropout: float) -> Tensor:
    """What eager computes, with the dropout masks of our operators."""
    slopes, asymmetrical = _slopes("eager", terms.bias, q)
    seed = torch.zeros((), dtype=torch.int64) if terms.seed is None else terms.seed
    return forward_reference(q, k, v, slopes, asymmetrical, terms.padding, dropout, seed)[0]


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

    ``padding`` (B, T) is True for keys to leave out; ``token_counts`` (B,) int32 say that these are all at the end, and
    ``starts`` (B + 1,) int32 what ``lengths`` say: on the device, for a backend that does not wait for it. In ``cache``
    tables of equal biases are kept, those without parameters.
    """
    packed = lengths is not None
    known = starts is not None if packed else padding is None or token_counts is not None
    name = check_backend(backend)
    if name == "auto":
        name = choose_backend(q, bias, dropout, packed=packed, lengths_known=known)
    # Activation checkpointing must meet the parameters of a bias again, not a table made of them before.
    cache = {} if cache is None or isinstance(bias, nn.Module) else cache
    if lengths is None:
        return BACKENDS[name](q, k, v, Terms(bias, padding, q.size(-2), cache, token_counts), dropout)
    if name == "fused":
        return attend_fused_packed(q, k, v, bias, lengths, dropout)
    if name == "triton" and starts is not None:
        return attend_triton(q, k, v, Terms(bias, starts=starts), dropout)
    terms = Terms(bias, None, max(lengths), cache)
    # Cut along the rows as they lie in memory, so that gradients are put together in that order too.
    mixed = []
    for part in zip(*(x.transpose(1, 2).split(lengths, dim=1) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(1, 2) for x in part)
        mixed.append(BACKENDS[name](a, b, c, terms, dropout).transpose(1, 2))
    return torch.cat(mixed, dim=1).transpose(1, 2)
