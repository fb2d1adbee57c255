"""Flash-style attention: ``torch.ops.fairseq.flash_attention_forward``, its reference implementation and its derivative.

What ``fairseq.ops.alibi_attention`` and ``fairseq.ops.band_attention`` compute, with ALiBi, tables over offsets, both or
neither, for sequences whose padding comes at the end and for packed ones; their lengths stay on the device, so that nothing
waits for it. The kernels
(``fairseq.ops.triton.attention_kernels``) take float32, bfloat16 and float16 and heads of 1 to 128 channels; whatever
else, and every tensor where Triton does not run, goes to the reference implementation, which keeps scores in memory.

Legend: B sequences, H heads, T tokens, N tokens of all packed sequences, D head width, w reach of tables.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.flash_reference import FlashExtras, flash_backward_reference, flash_forward_reference
from fairseq.ops.tensorfloat import precision
from fairseq.ops.triton import available

WIDEST = 128
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_CHUNK = 128  # tokens of which a program finds the largest norms
FAR = 1024  # tokens from which on it pays to look for tiles that can be left out


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor | None = None,
    asymmetrical: bool = False,
    *,
    token_counts: Tensor | None = None,
    starts: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
) -> Tensor:
    """Attention with linear biases or without, and with numbers by offset; gives (B, H, T, D), in memory (B, T, H, D).

    Args:
        q, k, v: (B, H, T, D) of one floating-point type, or (1, H, N, D) with ``starts``; in memory anyhow.
        slopes: (H,) float32: the bias is -slope times the distance of query and key. No gradient flows to it.
        asymmetrical: the distance to keys ahead is shorter by a half.
        token_counts: (B,) int32, keys of every sequence: those behind them are padding. None: all T.
        starts: (B + 1,) int32, where every packed sequence starts, and N at last; rows see their own sequence only.
        dropout_p: probability, rounded to a multiple of 2^-16, with which a key is left out (after the softmax).
        seed: of the dropout mask; a packed sequence has that which it would have as a row of a batch.
        query_table: (B, H, T, 2w + 1), or (1, H, N, 2w + 1): numbers for the offsets of keys from each query; see
            ``band_attention``. key_table: of queries from each key, with the same w. Gradients reach both.

    A row without any key gives zeros.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    _check(q, k, v, slopes, token_counts, starts, dropout_p)
    _check_tables(q, query_table, key_table)
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=q.device)
    operator = torch.ops.fairseq.flash_attention_forward.default
    return operator(q, k, v, slopes, asymmetrical, token_counts, starts, dropout_p, seed, query_table, key_table)[0]


def runs(q: Tensor) -> bool:
    """Whether the kernels take tensors like ``q``, here."""
    return q.dtype in _TYPES and q.size(-1) <= WIDEST and _available(str(q.device))


@torch.compiler.assume_constant_result
def _available(device: str) -> bool:
    return available(device)


def _check(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, counts: Tensor | None, starts: Tensor | None, p: float
) -> None:
    if q.dim() != 4 or not (q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype and q.is_floating_point()):
        found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in (q, k, v))
        raise ValueError(f"`q`, `k` and `v` must be (B, H, T, D) of one floating-point type, but are {found} instead")
    if slopes is not None and (slopes.shape != q.shape[1:2] or slopes.dtype != torch.float32):
        raise ValueError(
            f"`slopes` must be float32 of shape ({q.size(1)},), but is {slopes.dtype} of {tuple(slopes.shape)} instead"
        )
    if counts is not None and (counts.shape != q.shape[:1] or counts.dtype != torch.int32):
        raise ValueError(
            f"`token_counts` must be int32 of shape ({q.size(0)},), but is {counts.dtype} of {tuple(counts.shape)} instead"
        )
    if starts is not None:
        if starts.dim() != 1 or starts.size(0) < 1 or starts.dtype != torch.int32:
            raise ValueError(
                f"`starts` must be int32 of shape (B + 1,), but is {starts.dtype} of {tuple(starts.shape)} instead"
            )
        if q.size(0) != 1 or counts is not None:
            raise ValueError("`starts` is for packed sequences (1, H, N, D), which have no `token_counts`")
    if not 0 <= p <= 1:
        raise ValueError(f"`dropout_p` must be between 0 and 1, but is {p} instead")


def _check_tables(q: Tensor, query: Tensor | None, key: Tensor | None) -> None:
    given = [x for x in (query, key) if x is not None]
    columns = {x.size(-1) for x in given if x.dim() == 4 and x.shape[:3] == q.shape[:3] and x.is_floating_point()}
    if given and (
        len(columns) != 1
        or min(columns) < 3
        or min(columns) % 2 == 0
        or len(given) > 1
        and given[0].shape != given[1].shape
    ):
        found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in given)
        raise ValueError(
            f"tables must be floating-point {tuple(q.shape[:3])} x (2w + 1), one w for both, but are {found} instead"
        )


# Kernels -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """Rows and keys of a kernel's tiles, warps of a program, and tiles that are on their way from memory at a time."""

    rows: int
    keys: int
    warps: int
    stages: int


# By width: tiles, and warps and stages, with which the kernels need no stack beyond a few bytes. float32 takes no tensor
# cores unless TensorFloat-32 is allowed, and many registers.
_AMPERE = {
    "forward": {32: Blocks(128, 64, 4, 3), 64: Blocks(128, 64, 4, 3), 128: Blocks(128, 64, 8, 2)},
    "backward_queries": {32: Blocks(64, 64, 4, 2), 64: Blocks(128, 64, 8, 2), 128: Blocks(64, 32, 4, 2)},
    "backward_keys": {32: Blocks(64, 64, 4, 2), 64: Blocks(32, 128, 8, 2), 128: Blocks(64, 64, 8, 2)},
}
_HOPPER = {
    "forward": {32: Blocks(128, 128, 8, 3), 64: Blocks(128, 128, 8, 2), 128: Blocks(128, 64, 8, 3)},
    "backward_queries": {32: Blocks(64, 64, 4, 2), 64: Blocks(128, 64, 8, 2), 128: Blocks(128, 64, 8, 2)},
    "backward_keys": {32: Blocks(64, 128, 8, 2), 64: Blocks(64, 128, 8, 2), 128: Blocks(32, 64, 8, 2)},
}
# The same with tables, which take registers.
_AMPERE_TABLES = {
    "forward": {32: Blocks(64, 64, 4, 3), 64: Blocks(128, 64, 8, 3), 128: Blocks(128, 32, 8, 2)},
    "backward_queries": {32: Blocks(64, 32, 4, 2), 64: Blocks(64, 32, 4, 2), 128: Blocks(64, 32, 8, 2)},
    "backward_keys": {32: Blocks(32, 64, 4, 2), 64: Blocks(32, 32, 4, 2), 128: Blocks(32, 32, 4, 2)},
}
_HOPPER_TABLES = {
    "forward": {32: Blocks(128, 64, 8, 3), 64: Blocks(128, 64, 8, 2), 128: Blocks(128, 64, 8, 3)},
    "backward_queries": {32: Blocks(64, 64, 4, 2), 64: Blocks(128, 64, 8, 2), 128: Blocks(64, 64, 8, 2)},
    "backward_keys": {32: Blocks(64, 64, 8, 2), 64: Blocks(64, 64, 8, 2), 128: Blocks(32, 64, 8, 2)},
}
_FLOAT32 = {
    "forward": {64: Blocks(64, 32, 8, 1), 128: Blocks(32, 32, 8, 1)},
    "backward_queries": {64: Blocks(32, 32, 8, 1), 128: Blocks(16, 32, 8, 1)},
    "backward_keys": {64: Blocks(16, 32, 4, 1), 128: Blocks(16, 32, 8, 1)},
}


def blocks(kernel: str, width: int, itemsize: int, capability: int, tables: bool = False) -> Blocks:
    """For heads of ``width`` channels, on a device of ``capability`` 8, 9, ..., or 0: in the interpreter.

    The tiles for 9 and 10 need more shared memory than other devices have.
    """
    if capability == 0:
        return Blocks(64, 64, 4, 1)
    half = (_HOPPER, _HOPPER_TABLES) if capability in (9, 10) else (_AMPERE, _AMPERE_TABLES)
    table = _FLOAT32 if itemsize == 4 else half[tables]
    return table[kernel][min(size for size in table[kernel] if size >= width)]


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("fairseq.ops.triton.attention_kernels")


def _launch(
    name: str,
    tensors: list[Tensor],
    outputs: list[Tensor],
    qkv: tuple[Tensor, Tensor, Tensor],
    norms: Tensor,
    extras: FlashExtras,
) -> None:
    """Run the kernel ``name`` for all tiles of all heads."""
    z, heads, tokens, width = qkv[0].shape
    token_counts, starts = extras.token_counts, extras.starts
    block = blocks(name, width, qkv[0].element_size(), _capability(qkv[0].device), extras.reach > 0)
    rows = block.keys if name == "backward_keys" else block.rows
    batch = z if starts is None else starts.numel() - 1
    tiles = -(-tokens // rows) if starts is None else tokens // rows + batch
    threshold = int(extras.dropout_p * 65536 + 0.5)
    spare = qkv[0]  # for what is not there: a kernel never reads it then
    strides = [stride for x in qkv for stride in x.stride()[:3]]
    optional = (extras.slopes, norms, token_counts, starts, extras.seed, extras.query_table, extras.key_table)
    getattr(_kernels(), name)[(tiles * z * heads,)](
        *tensors,
        *(spare if x is None else x for x in optional),
        *outputs,
        *strides,
        batch,
        heads,
        tokens,
        tiles,
        int(norms.numel() > 0),
        threshold,
        width**-0.5 * _LOG2E,
        65536 / (65536 - threshold) if threshold < 65536 else 0.0,
        0.25 * extras.asymmetrical,
        D=width,
        WIDE=_padded(width),
        ROWS=block.rows,
        KEYS=block.keys,
        ALIBI=extras.slopes is not None,
        PACKED=starts is not None,
        COUNTED=token_counts is not None,
        DROPOUT=threshold > 0,
        PRECISION=precision(),
        REACH=extras.reach,
        BY_QUERY=extras.query_table is not None,
        BY_KEY=extras.key_table is not None,
        num_warps=block.warps,
        num_stages=block.stages,
        enable_fp_fusion=True,
    )


@functools.cache
def _capability(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


_LOG2E = 1.4426950408889634


def _norms(q: Tensor, k: Tensor, extras: FlashExtras) -> Tensor:
    """(B H, 2): the largest squared norms of q and k of every head; empty where leaving tiles out would not pay.

    Numbers of tables would have to be looked at, too.
    """
    z, heads, tokens, width = q.shape
    if extras.slopes is None or extras.reach or tokens < FAR:
        return q.new_empty(0, dtype=torch.float32)
    chunks = -(-tokens // _CHUNK)
    out = q.new_empty(z * heads, chunks, 2, dtype=torch.float32)
    strides = [*q.stride()[:3], *k.stride()[:3]]
    _kernels().largest_norms[(z * heads * chunks,)](
        q, k, out, *strides, heads, tokens, chunks, D=width, WIDE=_padded(width), ROWS=_CHUNK
    )
    return out.amax(dim=1)


def _padded(width: int) -> int:
    """The power of two that tiles of ``width`` channels are padded to."""
    return max(16, 1 << (width - 1).bit_length())


# Operators -----------------------------------------------------------------------------------------------------------


def _empty(q: Tensor) -> Tensor:
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _fake(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty(q), _empty(q), _empty(q), *_zeros(q, FlashExtras(*rest))


def _zeros(q: Tensor, extras: FlashExtras) -> tuple[Tensor, Tensor]:
    """For the gradients of the tables; empty for one that is not there."""
    by_query, by_key = extras.query_table, extras.key_table
    return (
        q.new_empty(0) if by_query is None else torch.zeros_like(by_query, memory_format=torch.contiguous_format),
        q.new_empty(0) if by_key is None else torch.zeros_like(by_key, memory_format=torch.contiguous_format),
    )


def _dense(x: Tensor) -> Tensor:
    """``x`` with one channel beside the next, as kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D) and the logarithm of the sum of exponentials of each row (B, H, T); +inf without keys."""
    extras = FlashExtras(*rest)
    if not runs(q):
        return flash_forward_reference(q, k, v, extras)
    q, k, v, extras = _dense(q), _dense(k), _dense(v), extras.contiguous()
    out, lse = _fake(q)
    if q.numel():
        with torch.cuda.device_of(q):
            _launch("forward", [q, k, v], [out, lse], (q, k, v), _norms(q, k, extras), extras)
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and both tables for the gradient of the output."""
    extras = FlashExtras(*rest)
    if not runs(q):
        return flash_backward_reference(grad, q, k, v, out, lse, extras)
    q, k, v, extras = _dense(q), _dense(k), _dense(v), extras.contiguous()
    grad, out = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (grad, out))  # as they are, as a rule
    dq, dk, dv, dquery, dkey = _backward_fake(grad, q, k, v, out, lse, *extras)
    if q.numel():
        delta = torch.empty_like(lse)
        with torch.cuda.device_of(q):
            norms = _norms(q, k, extras)
            for name, given, wanted in (
                ("backward_queries", [grad, q, k, v, out, lse], [dq, delta, dquery]),
                ("backward_keys", [grad, q, k, v, delta, lse], [dk, dv, dkey]),
            ):
                _launch(name, given, wanted, (q, k, v), norms, extras)
    return dq, dk, dv, dquery, dkey


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *rest = inputs
    extras = FlashExtras(*rest)
    ctx.asymmetrical, ctx.dropout_p = extras.asymmetrical, extras.dropout_p
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, *(x for x in extras if not isinstance(x, (bool, float))))


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, slopes, counts, starts, seed, by_query, by_key = ctx.saved_tensors
    operator = torch.ops.fairseq.flash_attention_backward.default
    extras = FlashExtras(slopes, ctx.asymmetrical, counts, starts, ctx.dropout_p, seed, by_query, by_key)
    dq, dk, dv, dquery, dkey = operator(grad, *tensors, *extras)
    tables = (None if by_query is None else dquery, None if by_key is None else dkey)
    return dq, dk, dv, None, None, None, None, None, None, *tables


_QKV = "Tensor q, Tensor k, Tensor v"
_EXTRAS = (
    "Tensor? slopes, bool asymmetrical, Tensor? token_counts, Tensor? starts, float dropout_p, Tensor seed, "
    "Tensor? query_table=None, Tensor? key_table=None"
)
library.define(f"flash_attention_forward({_QKV}, {_EXTRAS}) -> (Tensor, Tensor)", _forward, _fake)
library.define(
    f"flash_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor lse, {_EXTRAS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
torch.library.register_autograd("fairseq::flash_attention_forward", _differentiate, setup_context=_keep_for_backward)
