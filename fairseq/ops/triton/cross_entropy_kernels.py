"""The softmax loss of rows of logits and, in their place, its gradient: ``fairseq::cross_entropy_rows_`` on CUDA.

A row is read twice and written once by one program. The second reading is meant for the device's cache, which holds all
rows that are in work at a time, so the floor is one reading and one writing: 4 bytes a logit in half precision, 8 in
float32 (2 and 4 without the gradient). Sums are in float32, in an order that depends on V alone; nothing is atomic.
Reference implementation: ``fairseq/ops/linear_cross_entropy.py``.

Legend: N rows, V columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops.linear_cross_entropy import cross_entropy_rows_reference
from fairseq.ops.self_check import Pairs

BLOCK = 4096  # columns read at a time: 8 a thread, so that several rows are in work on a multiprocessor
_LARGEST = tl.constexpr(1e38)  # beyond any logit, and twice it is still a number, unlike infinities' difference


def cross_entropy_rows_(
    logits: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, scale: Tensor | None, with_gradient: bool
) -> Tensor:
    """As the reference implementation, for ``logits`` (N, V) with dense rows. A target that is no column gives a loss of NaN."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if not rows:
        return losses
    block = min(BLOCK, triton.next_power_of_2(columns))
    _rows_kernel[(rows,)](
        logits,
        logits if bias is None else bias.contiguous(),
        targets.contiguous(),
        losses if scale is None else scale,
        losses,
        logits.stride(0),
        columns,
        ignore_index,
        HAS_BIAS=bias is not None,
        HAS_SCALE=scale is not None,
        WITH_GRADIENT=with_gradient,
        BLOCK=block,
        num_warps=max(1, block // 256),
    )
    return losses


def differences(device: torch.device, dtype: torch.dtype) -> Pairs:
    """For the one-time check."""
    generator = torch.Generator().manual_seed(1)
    rows, columns, ignored = 5, BLOCK + 77, 3
    logits, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, columns), (columns,)))
    targets = torch.tensor([0, ignored, columns - 1, 5, BLOCK])
    logits, bias, targets = (logits * 4).to(device, dtype), bias.to(device, dtype), targets.to(device)
    scale = torch.full((), 1.5, device=device)
    found, expected = logits.clone(), logits.clone()
    arguments = (bias, targets, ignored, scale, True)
    losses = cross_entropy_rows_(found, *arguments), cross_entropy_rows_reference(expected, *arguments)
    return [losses, (found, expected)]


@triton.jit
def _scores(row, bias, at, columns, factor, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr):
    """Scaled and shifted logits of the columns ``at``; the lowest number beyond the last."""
    # Blocks that are whole need no mask, with which a compiler would read one number at a time.
    if MASKED:
        x = tl.load(row + at, mask=at < columns, other=0.0).to(tl.float32) * factor
        if HAS_BIAS:
            x += tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)
        x = tl.where(at < columns, x, -_LARGEST)
    else:
        x = tl.load(row + at).to(tl.float32) * factor
        if HAS_BIAS:
            x += tl.load(bias + at).to(tl.float32)
    return x


@triton.jit
def _grow(most, total, x):
    """Maximum and sum of exponentials (relative to it) with those of the block ``x``."""
    higher = tl.maximum(most, tl.max(x, 0))
    return higher, total * tl.exp(most - higher) + tl.sum(tl.exp(x - higher), 0)


@triton.jit
def _gradient(x, most, share, is_target, counted):
    return tl.where(counted, tl.exp(x - most) * share - tl.where(is_target, 1.0, 0.0), 0.0)


@triton.jit
def _rows_kernel(
    logits,
    bias,
    targets,
    scale,
    losses,
    stride,
    columns,
    ignore_index,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride
    target = tl.load(targets + index)
    counted = target != ignore_index
    factor = tl.load(scale) if HAS_SCALE else 1.0
    lanes = tl.arange(0, BLOCK)
    whole = columns // BLOCK * BLOCK

    known = counted & (target >= 0) & (target < columns)
    score = tl.load(row + target, mask=known, other=float("nan")).to(tl.float32) * factor
    if HAS_BIAS:
        score += tl.load(bias + target, mask=known, other=0.0).to(tl.float32)

    # What stands here for an ignored row makes its exponentials, and so its gradient, zero.
    most = tl.where(counted, -_LARGEST, _LARGEST)
    total = tl.where(counted, 0.0, 1.0)
    if counted:
        for start in range(0, whole, BLOCK):
            x = _scores(row, bias, start + lanes, columns, factor, HAS_BIAS, False)
            most, total = _grow(most, total, x)
        if whole < columns:
            x = _scores(row, bias, whole + lanes, columns, factor, HAS_BIAS, True)
            most, total = _grow(most, total, x)
    loss = most + tl.log(total) - score
    tl.store(losses + index, tl.where(counted, loss, 0.0))

    if WITH_GRADIENT:
        TYPE: tl.constexpr = logits.dtype.element_ty
        share = 1 / total
        if whole < columns:
            at = whole + lanes
            x = _scores(row, bias, at, columns, factor, HAS_BIAS, True)
            tl.store(row + at, _gradient(x, most, share, at == target, counted).to(TYPE), mask=at < columns)
        # Back to front: what was read last is the likeliest to be in the cache.
        for done in range(0, whole, BLOCK):
            at = whole - BLOCK - done + lanes
            x = _scores(row, bias, at, columns, factor, HAS_BIAS, False)
            tl.store(row + at, _gradient(x, most, share, at == target, counted).to(TYPE))
