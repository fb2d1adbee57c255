"""The Adam update itself: a reference implementation, torch's fused kernel, and how the weights are walked through.

Memory traffic decides the time of an update (float32: gradient read, weight and two moments read and written, 28
bytes a weight; the kernel alone is at that floor). So everything that would be another pass over memory (multiplying
the gradients, clipping, converting them from bfloat16, rounding the weights back) is done on pieces that stay in the
processor's cache, between reading the gradient and writing the weight: by the compiled operator where it was built
(``fairseq/ops/adam.py``), otherwise here, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.adam import low_precision_adam_
from fairseq.optim.fairseq_optimizer import Factor

#: Values handled at a time on the CPU. A multiple of the kernel's vector width, so that where pieces are cut never
#: changes a result; small enough that weight, moments and gradient of a piece fit a core's cache.
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

    ``grad`` None means a gradient of zeros. ``low_precision``, if given, receives the updated values in its own type.
    """

    param: Tensor
    grad: Tensor | None
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


def update(segments: list[Segment], hyper: Hyperparameters, factor: Factor = 1.0, *, fused: bool = True) -> None:
    """Update every segment in place, with gradients multiplied by ``factor``; gradients themselves may be overwritten.

    ``fused`` False, or a type, layout or device that the kernel does not know, takes the reference implementation. Weights in
    float16 or bfloat16 are updated through a temporary float32 copy.
    """
    whole: list[Segment] = []
    pieces: list[Segment] = []
    slow: list[Segment] = []
    one_pass: list[Segment] = []
    for segment in segments:
        if not (fused and _kernel_knows(segment)):
            slow.append(segment)
        elif segment.low_precision is None and segment.grad is not None and _same_type(segment):
            whole.append(segment)
        elif _operator_knows(segment):
            one_pass.append(segment)
        else:
            pieces.append(segment)
    if whole:
        fused_update(*_columns(whole), hyper, factor)
    if one_pass:
        rounded = [segment.low_precision for segment in one_pass if segment.low_precision is not None]
        low_precision_adam_(
            *_columns(one_pass),
            rounded,
            hyper.step,
            hyper.lr,
            hyper.betas,
            hyper.weight_decay,
            _kernel_eps(hyper),
            float(factor),
        )
    scratch = _Scratch()
    for batch in _batches(pieces):
        _update_converted(batch, hyper, factor, fused_update, scratch)
    for segment in slow:
        _update_converted([segment], hyper, factor, reference_update, scratch)


def _kernel_knows(segment: Segment) -> bool:
    given = [tensor for tensor in segment if tensor is not None]
    return (
        segment.param.device.type in ("cpu", "cuda")
        and segment.exp_avg.dtype in _FUSED_DTYPES
        and all(tensor.is_contiguous() or tensor is segment.grad for tensor in given)
        and hasattr(torch, "_fused_adamw_")
    )


def _operator_knows(segment: Segment) -> bool:
    return (
        segment.low_precision is not None
        and segment.grad is not None
        and segment.grad.is_contiguous()
        and segment.param.dtype == segment.exp_avg.dtype == torch.float32
        and segment.param.device.type == "cpu"
        and library.compiled_for("low_precision_adam_", "cpu")
    )


def _same_type(segment: Segment) -> bool:
    grad = segment.grad
    return grad is not None and grad.is_contiguous() and grad.dtype == segment.param.dtype == segment.exp_avg.dtype


def _columns(batch: list[Segment]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    return (
        [segment.param for segment in batch],
        [segment.grad for segment in batch if segment.grad is not None],
        [segment.exp_avg for segment in batch],
        [segment.exp_avg_sq for segment in batch],
    )


class _Scratch:
    """Memory for the float32 copies of one batch, used again for the next: fresh memory would cost page faults."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._used = 0

    def clear(self) -> None:
        self._used = 0

    def take(self, like: Tensor) -> Tensor:
        """An uninitialized tensor of the type, shape and device of ``like``."""
        size = like.numel()
        if like.device.type != "cpu" or not like.is_contiguous() or self._used + size > 2 * PIECE:
            return torch.empty_like(like)
        if self._buffer is None or self._buffer.dtype != like.dtype:
            self._buffer = torch.empty(2 * PIECE, dtype=like.dtype)
        self._used += size
        return self._buffer[self._used - size : self._used].view(like.shape)


def _update_converted(
    batch: list[Segment], hyper: Hyperparameters, factor: Factor, kernel: Callable[..., None], scratch: _Scratch
) -> None:
    """Update through float32 copies of the gradients (and of the weights, where these are half precision)."""
    scratch.clear()
    grads = [scratch.take(s.exp_avg) if s.grad is not None else torch.zeros_like(s.exp_avg) for s in batch]
    present = [(copy, s.grad) for copy, s in zip(grads, batch, strict=True) if s.grad is not None]
    if present:
        torch._foreach_copy_([copy for copy, _ in present], [grad for _, grad in present])
    params = [s.param if s.param.dtype == s.exp_avg.dtype else scratch.take(s.exp_avg).copy_(s.param) for s in batch]
    kernel(params, grads, [s.exp_avg for s in batch], [s.exp_avg_sq for s in batch], hyper, factor)
    targets = [(s.param, new) for s, new in zip(batch, params, strict=True) if s.param is not new]
    targets += [(s.low_precision, new) for s, new in zip(batch, params, strict=True) if s.low_precision is not None]
    if targets:
        torch._foreach_copy_([target for target, _ in targets], [new for _, new in targets])


def _batches(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Segments in batches: on the CPU of about PIECE values each, large segments cut; elsewhere all at once."""
    if segments and segments[0].param.device.type != "cpu":
        yield segments
        return
    batch: list[Segment] = []
    size = 0
    for segment in _cut(segments):
        if batch and size + segment.param.numel() > PIECE:
            yield batch
            batch, size = [], 0
        batch.append(segment)
        size += segment.param.numel()
    if batch:
        yield batch


def _cut(segments: list[Segment]) -> Iterator[Segment]:
    for segment in segments:
        if segment.param.numel() <= PIECE:
            yield segment
            continue
        columns = [None if tensor is None else tensor.reshape(-1).split(PIECE) for tensor in segment]
        for i in range(math.ceil(segment.param.numel() / PIECE)):
            yield Segment(*(column and column[i] for column in columns))  # type: ignore[arg-type]
