"""Dropout, residual connection and layer norm in one pass on CUDA: the operators of ``fairseq/ops/residual.py``.

A program holds whole rows in registers, so every number is read and written once. Bytes an element, the floor, in half
precision (twice that in float32): ``dropout_add`` 6 (4 without a residual), the norm 6 forward and 10 backward (8
without dropout). The mask is computed from the seed, bit for bit that of the CPU, and never kept. Gradients of the
norm's weight and bias are added up by a fixed number of programs over strips of rows and then over the programs, in an
order that depends on N and C alone.

Legend: N rows, C columns (the last dimension).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops import residual as reference
from fairseq.ops.self_check import Pairs
from fairseq.ops.triton.dropout_kernels import kept

WIDEST = 8192  # columns that fit the registers of one program
STRIPS = 512  # programs of the backward pass: enough for every device, and few enough to be added up at once
_TILE = 2048  # numbers in work at a time: with 128 threads two accesses of 16 bytes of half precision each


def dropout_add(x: Tensor, residual: Tensor | None, p: float, seed: Tensor) -> Tensor:
    """``reference.dropout_add_reference``, to the last bit."""
    if not _fits(x, p, seed):
        return reference.dropout_add_reference(x, residual, p, seed)
    rows, columns = _shape(x)
    x = x.contiguous()
    out = torch.empty_like(x)
    if out.numel():
        tile = _tile(columns)
        _dropout_add_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x,
            x if residual is None else residual.contiguous(),
            out,
            rows,
            columns,
            *_dropout(x, p, seed),
            HAS_RESIDUAL=residual is not None,
            DROPOUT=_threshold(p) > 0,
            enable_fp_fusion=False,  # a product that is not rounded before it is added would be another number
            **tile,
        )
    return out


def dropout_add_layer_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``reference.layer_norm_reference``."""
    if not _fits(x, p, seed):
        return reference.layer_norm_reference(x, residual, weight, bias, eps, p, seed)
    rows, columns = _shape(x)
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(x)
    mean, rstd = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    if out.numel():
        tile = _tile(columns)
        _norm_kernel[(triton.cdiv(rows, tile["ROWS"]),)](
            x,
            residual,
            weight.contiguous(),
            bias.contiguous(),
            out,
            mean,
            rstd,
            rows,
            columns,
            eps,
            *_dropout(x, p, seed),
            DROPOUT=_threshold(p) > 0,
            **tile,
        )
    return out, mean, rstd


def dropout_add_layer_norm_backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``reference.layer_norm_backward_reference``."""
    if not _fits(x, p, seed):
        return reference.layer_norm_backward_reference(grad, x, residual, weight, mean, rstd, p, seed)
    rows, columns = _shape(x)
    grad, x, residual = grad.contiguous(), x.contiguous(), residual.contiguous()
    dresidual = torch.empty_like(x)
    dx = torch.empty_like(x) if _threshold(p) else x.new_empty(0)
    tile = _tile(columns)
    strip = triton.cdiv(triton.cdiv(rows, STRIPS), tile["ROWS"]) * tile["ROWS"]  # rows of a program
    programs = triton.cdiv(rows, strip) if x.numel() else 0
    sums = torch.empty(programs, 2, columns, dtype=torch.float32, device=x.device)
    if programs:
        _norm_backward_kernel[(programs,)](
            grad,
            x,
            residual,
            weight.contiguous(),
            mean,
            rstd,
            dx,
            dresidual,
            sums,
            rows,
            columns,
            strip,
            *_dropout(x, p, seed),
            DROPOUT=_threshold(p) > 0,
            **tile,
        )
    dweight, dbias = sums.sum(0).to(x.dtype)
    return dx, dresidual, dweight, dbias


def differences(device: torch.device, dtype: torch.dtype) -> Pairs:
    """For the one-time check."""
    generator = torch.Generator().manual_seed(1)
    columns, eps, p = 200, 1e-5, 0.25
    x, base, grad = (torch.randn(37, columns, generator=generator).to(device, dtype) for _ in range(3))
    weight, bias = (torch.randn(columns, generator=generator).to(device, dtype) for _ in range(2))
    seed = torch.full((), (77 << 33) + 5, device=device)
    yield dropout_add(x, base, p, seed), reference.dropout_add_reference(x, base, p, seed)
    expected = reference.layer_norm_reference(x, base, weight, bias, eps, p, seed)
    yield from zip(dropout_add_layer_norm_forward(x, base, weight, bias, eps, p, seed), expected, strict=True)
    given = (grad, x, base, weight, *expected[1:], p, seed)
    backward = dropout_add_layer_norm_backward(*given), reference.layer_norm_backward_reference(*given)
    yield from zip(*backward, strict=True)


def _shape(x: Tensor) -> tuple[int, int]:
    """N and C."""
    columns = x.size(-1) if x.dim() else 1
    return x.numel() // max(columns, 1), columns


def _fits(x: Tensor, p: float, seed: Tensor) -> bool:
    rows, columns = _shape(x)
    return columns <= WIDEST and rows < 1 << 31 and (seed.device == x.device or not _threshold(p))


def _tile(columns: int) -> dict[str, int]:
    """What a program holds at a time, as arguments of a kernel."""
    width = max(8, triton.next_power_of_2(columns))
    rows = max(1, _TILE // width)
    a_warp = 512 if width <= _TILE else 256  # many threads have fewer registers each
    return {"ROWS": rows, "WIDTH": width, "num_warps": max(1, rows * width // a_warp)}


def _threshold(p: float) -> int:
    return int(p * 65536 + 0.5)


def _dropout(x: Tensor, p: float, seed: Tensor) -> tuple[Any, int, float]:
    """Seed (anything where it is not read), threshold and scale, as arguments of a kernel."""
    threshold = _threshold(p)
    return seed if threshold else x, threshold, 65536 / (65536 - threshold) if threshold < 65536 else 0.0


@triton.jit
def _factors(seed, row, threshold, scale, DROPOUT: tl.constexpr, WIDTH: tl.constexpr):
    """What dropout multiplies the numbers of the rows ``row`` by."""
    factors = 1.0
    if DROPOUT:
        factors = tl.where(kept(tl.load(seed), row, threshold, WIDTH), scale, 0.0)
    return factors


@triton.jit(do_not_specialize=["rows", "threshold"])
def _dropout_add_kernel(
    x, residual, out, rows, columns, seed, threshold, scale,
    HAS_RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows)[:, None] & (column < columns)
    at = row.to(tl.int64)[:, None] * columns + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * _factors(seed, row, threshold, scale, DROPOUT, WIDTH)
    if HAS_RESIDUAL:
        z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, z.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "threshold"])
def _norm_kernel(
    x, residual, weight, bias, out, means, rstds, rows, columns, eps, seed, threshold, scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    inside = (row < rows)[:, None] & (column < columns)
    at = row.to(tl.int64)[:, None] * columns + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * _factors(seed, row, threshold, scale, DROPOUT, WIDTH)
    z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(z, 1) / columns
    centered = tl.where(inside, z - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt_rn(tl.sum(centered * centered, 1) / columns + eps)
    gain = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    normal = centered * rstd[:, None] * gain + shift
    tl.store(out + at, normal.to(out.dtype.element_ty), mask=inside)
    tl.store(means + row, mean, mask=row < rows)
    tl.store(rstds + row, rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "strip", "threshold"])
def _norm_backward_kernel(
    grad, x, residual, weight, means, rstds, dx, dresidual, sums, rows, columns, strip, seed, threshold, scale,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)[None, :]
    gain = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, WIDTH), tl.float32)
    dbias = tl.zeros((ROWS, WIDTH), tl.float32)
    first = tl.program_id(0) * strip
    for start in range(first, tl.minimum(first + strip, rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)
        at = row.to(tl.int64)[:, None] * columns + column
        factors = _factors(seed, row, threshold, scale, DROPOUT, WIDTH)
        mean = tl.load(means + row, mask=row < rows, other=0.0)[:, None]
        rstd = tl.load(rstds + row, mask=row < rows, other=0.0)[:, None]
        z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factors
        z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        normal = tl.where(inside, (z - mean) * rstd, 0.0)
        inner = up * gain
        level = (tl.sum(inner, 1) / columns)[:, None]
        slope = (tl.sum(inner * normal, 1) / columns)[:, None]
        dz = (inner - level - normal * slope) * rstd
        tl.store(dresidual + at, dz.to(dresidual.dtype.element_ty), mask=inside)
        if DROPOUT:
            tl.store(dx + at, (dz * factors).to(dx.dtype.element_ty), mask=inside)
        dweight += up * normal
        dbias += up
    to = sums + tl.program_id(0).to(tl.int64) * 2 * columns + tl.arange(0, WIDTH)
    tl.store(to, tl.sum(dweight, 0), mask=tl.arange(0, WIDTH) < columns)
    tl.store(to + columns, tl.sum(dbias, 0), mask=tl.arange(0, WIDTH) < columns)
