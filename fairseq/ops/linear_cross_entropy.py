"""Projection to the vocabulary and cross entropy in one operator that never holds all logits.

Rows are taken in chunks: logits of a chunk, their softmax and loss, and at once, in the place of the logits, their
gradient, which goes into those of the hidden rows and of the weight. That takes three products in all, and no logits
are kept between the passes; the backward pass only scales the gradients by its own. Sums are in float32 (float64 for
float64), half precision or not.

Legend: N rows, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.linear import multiplies, product

ROWS = 512  # of a chunk: enough to reuse each weight that is loaded, and 100 MB of float32 logits with V 50265
CUDA_BYTES = 1 << 28  # of a chunk's logits on a device whose cores want large products: 2560 rows of bfloat16 logits
_ALIGNED = 128  # bytes: where rows of logits begin on CUDA, and a multiple of the tiles that are quick


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The summed loss, in nats, of ``softmax(scale * hidden weight' + bias)`` for ``targets``: float32 (or 64), 0-dim.

    Args:
        hidden: (N, C).
        weight: (V, C), tied to embeddings or not.
        targets: (N,) int64 columns; rows whose target is ``ignore_index`` count nothing.
        bias: (V,) or None.
        scale: one number that multiplies the products, or None for 1; a gradient flows to it.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    _check(hidden, weight, targets, bias, scale)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias, scale))
    operator = torch.ops.fairseq.linear_cross_entropy_forward.default
    return operator(hidden, weight, targets, bias, scale, ignore_index, wanted)[0]


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The same with all logits in memory; differentiable."""
    logits = F.linear(hidden, weight)
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide) if scale is None else logits.to(wide) * scale.to(wide)
    logits = logits if bias is None else logits + bias.to(wide)
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")


def chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    ignore_index: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss and the gradients of hidden, weight, bias and scale; those are empty without ``with_gradients``."""
    with torch.autocast(hidden.device.type, enabled=False):  # the types of products are chosen here
        return _chunked(hidden, weight, targets, bias, scale, ignore_index, with_gradients)


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    ignore_index: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    kind = hidden.dtype if multiplies(hidden) else wide  # of the products
    factor = None if scale is None else scale.to(wide)
    rows, table = hidden.to(kind), weight.to(kind)
    shift = None if bias is None else bias.to(kind).contiguous()
    loss = torch.zeros((), dtype=wide, device=hidden.device)
    # Sums over chunks; a chunk's fraction of the weight's gradient is added by the product itself.
    dhidden = torch.empty_like(rows) if with_gradients else hidden.new_empty(0)
    dtable = torch.zeros_like(table, dtype=wide) if with_gradients and not len(rows) else None
    dbias = torch.zeros(len(weight) if with_gradients and bias is not None else 0, dtype=wide, device=hidden.device)
    ranges = _chunks(len(rows), _rows_of_chunk(table))
    buffer = _logits_buffer(table, ranges)
    for start, end in ranges:
        here = rows[start:end]
        logits = product(here, table) if buffer is None else torch.mm(here, table.t(), out=buffer[: end - start])
        losses = torch.ops.fairseq.cross_entropy_rows_.default(
            logits, shift, targets[start:end], ignore_index, factor, with_gradients
        )
        loss += losses.sum()
        if with_gradients:
            dhidden[start:end] = product(logits, table.t())
            dtable = _accumulated(dtable, logits, here if factor is None else (here * factor).to(kind), wide)
            if bias is not None:
                dbias += logits.sum(0, dtype=wide)
        del logits  # before the next chunk's come, where each has its own
    if not with_gradients:
        return loss, dhidden, weight.new_empty(0), dbias.to(weight.dtype), loss.new_empty(0)
    assert dtable is not None
    dscale = loss.new_empty(0)
    if scale is not None and factor is not None:
        dscale = (dhidden.to(wide) * hidden.to(wide)).sum().to(scale.dtype).view(scale.shape)
        dhidden = dhidden * factor
    return (
        loss,
        dhidden.to(hidden.dtype),
        dtable.to(weight.dtype),
        dbias if bias is None else dbias.to(bias.dtype),
        dscale,
    )


def _accumulated(sum_so_far: Tensor | None, grads: Tensor, rows: Tensor, wide: torch.dtype) -> Tensor:
    """``sum_so_far + grads' rows``, in ``wide`` and in place where there is a sum."""
    if sum_so_far is not None and grads.dtype == wide:
        return sum_so_far.addmm_(grads.t(), rows)
    part = torch.mm(grads.t(), rows)
    return part if sum_so_far is None else sum_so_far.to(wide).add_(part)


def _on_device(table: Tensor) -> bool:
    return table.device.type == "cuda"


def _rows_of_chunk(table: Tensor) -> int:
    """How many rows of logits with ``table`` (V, C) make a chunk."""
    if not _on_device(table):
        return ROWS
    return max(ROWS, CUDA_BYTES // max(len(table) * table.itemsize, 1) // _ALIGNED * _ALIGNED)


def _logits_buffer(table: Tensor, ranges: list[tuple[int, int]]) -> Tensor | None:
    """Memory for the logits of every chunk on CUDA, where products with rows that begin anywhere are slow."""
    if not _on_device(table) or not ranges:
        return None
    most, step = max(end - start for start, end in ranges), _ALIGNED // table.itemsize
    return table.new_empty(most, -(-len(table) // step) * step)[:, : len(table)]


def _chunks(rows: int, most: int) -> list[tuple[int, int]]:
    """Ranges of about equal size, none above ``most``."""
    count = -(-rows // most)
    size = -(-rows // max(count, 1))
    return [(start, min(start + size, rows)) for start in range(0, rows, max(size, 1))]


def cross_entropy_rows_reference(
    logits: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, scale: Tensor | None, with_gradient: bool
) -> Tensor:
    """Losses (N,) of ``scale * logits + bias``; ``logits`` (N, V) become their gradients if ``with_gradient``.

    That is the gradient of ``scale * logits``: softmax minus one at the target, zero for ignored rows.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.to(wide) if scale is None else logits.to(wide) * scale
    scores = scores if bias is None else scores + bias.to(wide)
    losses = F.cross_entropy(scores, targets, ignore_index=ignore_index, reduction="none")
    if with_gradient:
        counted = targets != ignore_index
        grads = torch.softmax(scores, dim=-1)
        grads.scatter_add_(1, targets.where(counted, 0).unsqueeze(1), -torch.ones_like(grads[:, :1]))
        logits.copy_(grads * counted.unsqueeze(1))
    return losses


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.size(1) != weight.size(1):
        raise ValueError(
            f"`hidden` must be (N, C) and `weight` (V, C), but have shapes {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not (hidden.is_floating_point() and hidden.dtype == weight.dtype):
        raise ValueError(
            f"`hidden` and `weight` must have one floating-point type, but have {hidden.dtype} and {weight.dtype} instead"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"`targets` must be int64 of shape ({hidden.size(0)},), but is {targets.dtype} of {tuple(targets.shape)} instead"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` must have shape ({weight.size(0)},), but has {tuple(bias.shape)} instead")
    if scale is not None and scale.numel() != 1:
        raise ValueError(f"`scale` must be one number, but has shape {tuple(scale.shape)} instead")


def _rows_fake(logits: Tensor, bias: Tensor | None, targets: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(logits.size(0), dtype=torch.promote_types(logits.dtype, torch.float32))


def _fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    ignore_index: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    if not with_gradients:
        return loss, hidden.new_empty(0), weight.new_empty(0), weight.new_empty(0), loss.new_empty(0)
    dbias = loss.new_empty(0) if bias is None else torch.empty_like(bias)
    dscale = loss.new_empty(0) if scale is None else torch.empty_like(scale)
    dhidden, dweight = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (hidden, weight))
    return loss, dhidden, dweight, dbias, dscale


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, bias, scale, ctx.ignore_index, with_gradients = inputs
    ctx.has_bias, ctx.has_scale = bias is not None, scale is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, bias, scale)
    ctx.mark_non_differentiable(*output[1:])
    ctx.gradients = list(output[1:]) if with_gradients else None


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 7
    if grad is None:
        return nothing
    # Handed out without keeping a reference, so that the engine may keep them without a copy: the weight's is large.
    # Whoever walks the graph a second time has them computed again.
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        operator = torch.ops.fairseq.linear_cross_entropy_forward.default
        gradients = list(operator(*ctx.saved_tensors, ctx.ignore_index, True)[1:])
    gradients = [scaled(gradient, grad) for gradient in gradients]
    dhidden, dweight, dbias, dscale = gradients
    return dhidden, dweight, None, dbias if ctx.has_bias else None, dscale if ctx.has_scale else None, None, None


def scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """``gradient * by``; as it is for the usual 1 where looking costs nothing."""
    known = type(by) is Tensor and by.device.type == "cpu" and not torch.compiler.is_compiling()
    if known and float(by) == 1:
        return gradient
    return gradient * by.to(gradient.dtype)


library.define(
    "cross_entropy_rows_(Tensor(a!) logits, Tensor? bias, Tensor targets, int ignore_index, Tensor? scale, "
    "bool with_gradient) -> Tensor",
    cross_entropy_rows_reference,
    _rows_fake,
)
library.define_on_cuda("cross_entropy_rows_", "cross_entropy", cross_entropy_rows_reference)
library.define(
    "linear_cross_entropy_forward(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, Tensor? scale, "
    "int ignore_index, bool with_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    chunked,
    _fake,
)
torch.library.register_autograd("fairseq::linear_cross_entropy_forward", _backward, setup_context=_keep_gradients)
library.load()
