"""Operators of an optimizer whose model holds rounded copies of float32 weights: Adam, and gradient norms.

Memory traffic decides the time of an update, so both operators read a gradient once, convert it in the cache, and leave no
float32 copy of it behind. The compiled kernels give the results of the reference implementations here to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq.ops import library


def low_precision_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    low_params: Sequence[Tensor],
    step: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
    factor: float | Tensor = 1.0,
) -> None:
    """AdamW (torch's formula) on float32 ``params`` with half-precision ``grads`` times ``factor``; fills ``low_params``.

    The lists have one dense tensor a parameter, of equal numbers of values; ``params`` and moments are float32.
    ``step`` counts from 1 and includes this one. ``grads`` stay as they are. A ``factor`` on a device is not read here.
    """
    if not isinstance(factor, Tensor):
        factor = None if factor == 1.0 else torch.tensor(factor, dtype=torch.float64)  # type: ignore[assignment]
    torch.ops.fairseq.low_precision_adam_(
        params, grads, exp_avgs, exp_avg_sqs, low_params, step, lr, *betas, weight_decay, eps, factor
    )


def low_precision_adam_reference(
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
    """Twin: a float32 copy of each gradient, torch's fused kernel, the result rounded."""
    for param, grad, exp_avg, exp_avg_sq, low_param in zip(
        params, grads, exp_avgs, exp_avg_sqs, low_params, strict=True
    ):
        count = torch.tensor(step, dtype=torch.float32, device=param.device)
        scale = None if factor is None else factor.double().reciprocal().to(param.device, torch.float32)
        torch._fused_adamw_(
            [param.detach()],
            [grad.detach().to(torch.float32, copy=True).view_as(param)],
            [exp_avg],
            [exp_avg_sq],
            [],
            [count],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )
        low_param.detach().copy_(param.detach().view_as(low_param))


def block_norms(tensors: Sequence[Tensor], block: int) -> Tensor:
    """L2 norms of consecutive blocks of ``block`` values of each tensor (its last may be shorter), in order; float32 (N,)."""
    return torch.ops.fairseq.block_norms(tensors, block)


def block_norms_reference(tensors: Sequence[Tensor], block: int) -> Tensor:
    """Twin: one tensor at a time, through a float32 copy."""
    norms: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).float()
        whole = flat.numel() // block * block
        if whole:
            norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, block), dim=1))
        if whole < flat.numel():
            norms.append(torch.linalg.vector_norm(flat[whole:]).view(1))
    return torch.cat(norms) if norms else torch.zeros(0)


def _fake_update(*arguments: object) -> None:
    return None


def _fake_norms(tensors: Sequence[Tensor], block: int) -> Tensor:
    count = sum(-(-tensor.numel() // block) for tensor in tensors)
    return torch.empty(count, device=tensors[0].device if tensors else None)


library.define(
    "low_precision_adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] low_params, float step, float lr, float beta1, float beta2, float weight_decay, float eps, Tensor? factor) "
    "-> ()",
    low_precision_adam_reference,
    _fake_update,
)
library.define_on_cuda("low_precision_adam_", "adam", low_precision_adam_reference)
library.define("block_norms(Tensor[] tensors, int block) -> Tensor", block_norms_reference, _fake_norms)
