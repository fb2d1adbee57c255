"""Adam for half-precision models on CUDA, all parameters in one pass: ``fairseq::low_precision_adam_``.

Bytes a parameter, the floor: 28. Read 2 of the gradient and 12 of the float32 master and moments, write these 12 and 2
of the rounded parameter. One launch does all tensors (a second one those that do not begin at a multiple of 16 bytes,
so that the others are read 16 bytes at a time): a program takes ``BLOCK`` values, and finds their tensor in a table of
addresses that the host sends from page-locked memory, without waiting. No number is read from the device.

Every operation is rounded to float32 by itself, in the order in which `_updated` writes it, nothing is contracted, and
roots and quotients are the exact ones rounded: the result is the same to the last bit on every device and in the
interpreter. The reference implementation, torch's kernel, contracts some products and sums: it may differ from this in
the last places of an intermediate result. The low-precision parameter always is the new master, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops.adam import low_precision_adam_reference
from fairseq.ops.self_check import Pairs

BLOCK = 2048
_ROW = tl.constexpr(7)  # of the table: master, gradient, two moments, parameter; number of values; first program
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_Row = tuple[Tensor, ...]


def low_precision_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    low_params: Sequence[Tensor],
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    factor: Tensor | None,
) -> None:
    """As the reference implementation, for dense tensors; ``factor`` stays where it is, on the host or the device."""
    groups: dict[Any, list[_Row]] = {}
    for row in zip(params, grads, exp_avgs, exp_avg_sqs, low_params, strict=True):
        _check(row)
        if row[0].numel():
            aligned = all(tensor.data_ptr() % 16 == 0 for tensor in row)
            groups.setdefault((row[1].dtype, row[4].dtype, aligned), []).append(row)
    unread = factor is not None and factor.device.type != "cpu"
    by = factor.float() if factor is not None and unread else 1.0 if factor is None else float(factor)
    for (grad_type, low_type, aligned), rows in groups.items():
        table, programs = _table(rows)
        _adam_kernel[(programs,)](
            table,
            len(rows),
            by,
            1 - lr * weight_decay,
            1 - beta1,
            beta2,
            1 - beta2,
            lr / (1 - beta1**step),
            math.sqrt(1 - beta2**step),
            eps,
            UNREAD=unread,
            GRAD=_TYPES[grad_type],
            LOW=_TYPES[low_type],
            ALIGNED=16 if aligned else 1,
            TENSORS=triton.next_power_of_2(len(rows)),
            BLOCK=BLOCK,
            num_warps=8,
            enable_fp_fusion=False,
        )
    changed = (*params, *exp_avgs, *exp_avg_sqs, *low_params)
    torch.autograd.graph.increment_version([tensor for tensor in changed if not tensor.is_inference()])


def _check(row: _Row) -> None:
    first = row[0]
    for place, tensor in enumerate(row):
        fits = tensor.is_contiguous() and tensor.device == first.device and tensor.numel() == first.numel()
        if not fits or tensor.dtype not in (_TYPES if place in (1, 4) else (torch.float32,)):
            raise ValueError(
                "masters and moments must be dense float32 tensors, gradients and low-precision parameters dense "
                "ones, all of one size and on one device"
            )


def _table(rows: list[_Row]) -> tuple[Tensor, int]:
    """Addresses, sizes and first programs of all tensors on their device, and the number of programs."""
    numbers, programs = [], 0
    for row in rows:
        numbers.append([*(tensor.data_ptr() for tensor in row), row[0].numel(), programs])
        programs += triton.cdiv(row[0].numel(), BLOCK)
    device = rows[0][0].device
    table = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return table.to(device, non_blocking=True), programs


def differences(device: torch.device, dtype: torch.dtype) -> Pairs:
    """For the one-time check; ``dtype`` is that of the masters, so all low-precision types are tried."""
    generator = torch.Generator().manual_seed(1)
    for low_type in (torch.bfloat16, torch.float16):
        sizes = [3, 2 * BLOCK, BLOCK + 77]
        params, grads, moments = ([torch.randn(n, generator=generator).to(device) for n in sizes] for _ in range(3))
        columns: list[Any] = [
            params,
            [grad.to(low_type) for grad in grads],
            moments,
            [moment.square() for moment in moments],
            [param.to(low_type) for param in params],
        ]
        others: list[Any] = [[tensor.clone() for tensor in column] for column in columns]
        numbers: list[Any] = [2.0, 0.1, 0.9, 0.98, 0.01, 1e-6, torch.full((), 0.3, device=device)]
        low_precision_adam_(*columns, *numbers)
        low_precision_adam_reference(*others, *numbers)
        for column, other in zip(columns[:4], others[:4], strict=True):
            yield from zip(column, other, strict=True)
        yield from ((low, param.to(low_type)) for low, param in zip(columns[4], params, strict=True))


@triton.jit
def _updated(param, grad, m, v, decay, rest1, beta2, rest2, step_size, root, eps):
    """Weight and moments after the update, in float32."""
    m += rest1 * (grad - m)
    v = beta2 * v + rest2 * grad * grad
    return param * decay - tl.div_rn(step_size * m, tl.div_rn(tl.sqrt_rn(v), root) + eps), m, v


@triton.jit
def _pointer(table, index, place: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    return tl.multiple_of(tl.load(table + index * _ROW + place).to(tl.pointer_type(TYPE)), ALIGNED)


@triton.jit
def _adam_kernel(
    table, tensors, factor, decay, rest1, beta2, rest2, step_size, root, eps,
    UNREAD: tl.constexpr, GRAD: tl.constexpr, LOW: tl.constexpr, ALIGNED: tl.constexpr, TENSORS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    if UNREAD:
        factor = tl.load(factor)
    lane = tl.arange(0, TENSORS)
    begun = (lane < tensors) & (tl.load(table + lane * _ROW + 6, mask=lane < tensors, other=0) <= tl.program_id(0))
    index = tl.sum(begun.to(tl.int32), 0) - 1
    params = _pointer(table, index, 0, tl.float32, ALIGNED)
    grads = _pointer(table, index, 1, GRAD, ALIGNED)
    ms = _pointer(table, index, 2, tl.float32, ALIGNED)
    vs = _pointer(table, index, 3, tl.float32, ALIGNED)
    lows = _pointer(table, index, 4, LOW, ALIGNED)
    count = tl.load(table + index * _ROW + 5)
    first = (tl.program_id(0) - tl.load(table + index * _ROW + 6)) * BLOCK
    at = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:  # without a mask, with which a compiler would read one number at a time
        param = tl.load(params + at)
        grad = tl.load(grads + at).to(tl.float32) * factor
        param, m, v = _updated(
            param, grad, tl.load(ms + at), tl.load(vs + at), decay, rest1, beta2, rest2, step_size, root, eps
        )
        tl.store(params + at, param)
        tl.store(ms + at, m)
        tl.store(vs + at, v)
        tl.store(lows + at, param.to(LOW))
    else:
        inside = at < count
        param = tl.load(params + at, mask=inside, other=0.0)
        grad = tl.load(grads + at, mask=inside, other=0.0).to(tl.float32) * factor
        m = tl.load(ms + at, mask=inside, other=0.0)
        v = tl.load(vs + at, mask=inside, other=0.0)
        param, m, v = _updated(param, grad, m, v, decay, rest1, beta2, rest2, step_size, root, eps)
        tl.store(params + at, param, mask=inside)
        tl.store(ms + at, m, mask=inside)
        tl.store(vs + at, v, mask=inside)
        tl.store(lows + at, param.to(LOW), mask=inside)
