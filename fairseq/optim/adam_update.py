"""The Adam update itself: a reference implementation, torch's fused kernel, and which tensors take which way.

Memory traffic decides the time of an update (float32: gradient read, weight and two moments read and written, 28
bytes a weight; the kernel alone is at that floor). So multiplying and clipping the gradients is part of the kernel's pass,
and so is, in the compiled operator (``fairseq/ops/adam.py``), converting bfloat16 gradients and rounding the weights back.
Where that was not built, float32 copies of pieces give the same bits in more time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.adam import low_precision_adam_
from fairseq.optim.fairseq_optimizer import Factor
from fairseq.tree import HALF

#: Values converted at a time on the CPU, so that the copies stay in a core's cache. A multiple of the kernel's vector
#: width: where tensors are cut never changes a result.
PIECE = 1 << 18
_FUSED_DTYPES = (torch.float32, torch.float64)


class Hyperparameters(NamedTuple):
    """The numbers of one update."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    step: int
    #: True: epsilon is added to the bias-corrected second moment (the published AdamW); False: fairseq's Adam.
    corrected_eps: bool = False


class Segment(NamedTuple):
    """One tensor to update. All present members have the same number of values, in the same order.

    ``low_precision``, if given, receives the updated values in its own type.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    low_precision: Tensor | None = None


def reference_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    hyper: Hyperparameters,
    factor: Factor = 1.0,
) -> None:
    """The formula (Loshchilov and Hutter, 2019), in place, with gradients multiplied by ``factor``.

    The reference implementation of :func:`fused_update`, and its fallback.
    """
    beta1, beta2 = hyper.betas
    correction1 = 1 - beta1**hyper.step
    correction2 = 1 - beta2**hyper.step
    for param, grad, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if torch.is_tensor(factor) or factor != 1.0:
            grad.mul_(factor)
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        param.mul_(1 - hyper.lr * hyper.weight_decay)
        if hyper.corrected_eps:
            param.addcdiv_(m, v.sqrt().div_(math.sqrt(correction2)).add_(hyper.eps), value=-hyper.lr / correction1)
        else:
            step_size = hyper.lr * math.sqrt(correction2) / correction1
            param.addcdiv_(m, v.sqrt().add_(hyper.eps), value=-step_size)


def fused_update(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    hyper: Hyperparameters,
    factor: Factor = 1.0,
) -> None:
    """The same through torch's fused AdamW kernel."""
    device = params[0].device
    step = torch.full((), float(hyper.step), device=device)
    torch._fused_adamw_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        [step] * len(params),
        lr=hyper.lr,
        beta1=hyper.betas[0],
        beta2=hyper.betas[1],
        weight_decay=hyper.weight_decay,
        eps=_kernel_eps(hyper),
        amsgrad=False,
        maximize=False,
        # The kernel divides by this and stores the quotient in the gradient, all in its one pass.
        grad_scale=_inverse(factor, device),
    )


def _inverse(factor: Factor, device: torch.device) -> Tensor | None:
    """1 / factor on ``device``, not waiting for it; None for a factor of 1."""
    if torch.is_tensor(factor):
        return factor.float().reciprocal()
    if factor == 1.0:
        return None
    return torch.full((), 1.0 / factor if factor else math.inf, device=device)


def _kernel_eps(hyper: Hyperparameters) -> float:
    """Epsilon for a kernel that adds it to ``sqrt(v / (1 - beta2^t))``, where eps / sqrt(1 - beta2^t) is eps on ``sqrt(v)``."""
    return hyper.eps if hyper.corrected_eps else hyper.eps / math.sqrt(1 - hyper.betas[1] ** hyper.step)


def update(segments: list[Segment], hyper: Hyperparameters, factor: Factor = 1.0) -> None:
    """Update every segment in place, with gradients multiplied by ``factor``; gradients themselves may be overwritten.

    A type, layout or device that the kernel does not know takes the reference implementation. Weights in float16 or
    bfloat16 are updated through a temporary float32 copy.
    """
    plain: list[Segment] = []
    rounded: list[Segment] = []
    converted: list[Segment] = []
    for segment in segments:
        if not _kernel_knows(segment):
            _update_converted([segment], hyper, factor, reference_update)
        elif segment.low_precision is None and _same_type(segment):
            plain.append(segment)
        elif _operator_knows(segment):
            rounded.append(segment)
        else:
            converted.append(segment)
    if plain:
        fused_update(*_columns(plain), hyper, factor)
    if rounded:
        low_precision_adam_(
            *_columns(rounded),
            [segment.low_precision for segment in rounded if segment.low_precision is not None],
            hyper.step,
            hyper.lr,
            hyper.betas,
            hyper.weight_decay,
            _kernel_eps(hyper),
            factor,
        )
    if converted and converted[0].param.device.type == "cuda":  # which wants few calls
        _update_converted(converted, hyper, factor, fused_update)
    else:
        for piece in itertools.chain.from_iterable(map(_pieces, converted)):
            _update_converted([piece], hyper, factor, fused_update)


def _kernel_knows(segment: Segment) -> bool:
    dense = (segment.param, segment.exp_avg, segment.exp_avg_sq, segment.low_precision)
    return (
        segment.param.device.type in ("cpu", "cuda")
        and segment.exp_avg.dtype in _FUSED_DTYPES
        and all(tensor is None or tensor.is_contiguous() for tensor in dense)
    )


def _operator_knows(segment: Segment) -> bool:
    return (
        segment.low_precision is not None
        and segment.low_precision.dtype in HALF  # parameters may stay float32 in a half-precision model
        and segment.grad.is_contiguous()
        and segment.param.dtype == segment.exp_avg.dtype == torch.float32
        and library.has_kernel("low_precision_adam_", segment.param.device, torch.float32)
    )


def _same_type(segment: Segment) -> bool:
    return segment.grad.is_contiguous() and segment.grad.dtype == segment.param.dtype == segment.exp_avg.dtype


def _pieces(segment: Segment) -> Iterator[Segment]:
    columns = (itertools.repeat(None) if tensor is None else tensor.reshape(-1).split(PIECE) for tensor in segment)
    return (Segment(*piece) for piece in zip(*columns))  # noqa: B905 (some repeat for ever)


def _columns(batch: list[Segment]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    return (
        [segment.param for segment in batch],
        [segment.grad for segment in batch],
        [segment.exp_avg for segment in batch],
        [segment.exp_avg_sq for segment in batch],
    )


def _update_converted(
    batch: list[Segment], hyper: Hyperparameters, factor: Factor, kernel: Callable[..., None]
) -> None:
    """Update through float32 copies of the gradients (and of the weights, where these are half precision)."""
    weights, gradients, moments, squares = _columns(batch)
    grads = [torch.empty_like(moment) for moment in moments]
    torch._foreach_copy_(grads, gradients)
    params = [
        weight if weight.dtype == moment.dtype else weight.to(moment.dtype)
        for weight, moment in zip(weights, moments, strict=True)
    ]
    kernel(params, grads, moments, squares, hyper, factor)
    targets = [
        (target, new)
        for segment, new in zip(batch, params, strict=True)
        for target in (segment.param, segment.low_precision)
        if target is not None and target is not new
    ]
    if targets:
        torch._foreach_copy_([target for target, _ in targets], [new for _, new in targets])
