"""The total L2 norm of a list of gradients, and clipping by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.adam import block_norms
from fairseq.tree import HALF

#: Values summed into one partial norm. A fixed width makes the result independent of the number of threads, lets the
#: threads share one large tensor, and keeps float32 sums short (the vocabulary has tens of millions of entries).
BLOCK = 2048

Factor = float | Tensor
"""What gradients are multiplied by. Reading a number from a GPU would wait for all that it has still to do."""


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """L2 norm over all values of all ``grads``, accumulated in float32; 0-dim float32 on the gradients' device."""
    if not grads:
        return torch.zeros((), dtype=torch.float32)
    if grads[0].device.type != "cpu":
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads), 2, dtype=torch.float32)))
    if library.compiled_for("block_norms", "cpu") and all(g.dtype in HALF and g.is_contiguous() for g in grads):
        return torch.linalg.vector_norm(block_norms(grads, BLOCK))
    partial: list[Tensor] = []
    buffer: Tensor | None = None
    for grad in grads:
        flat = grad.detach().reshape(-1)
        if flat.dtype == torch.float32:
            partial += _block_norms(flat)
            continue
        # Converting in cache and summing there is several times faster than a reduction over bfloat16.
        buffer = torch.empty(128 * BLOCK) if buffer is None else buffer
        for piece in flat.split(buffer.numel()):
            partial += _block_norms(buffer[: piece.numel()].copy_(piece))
    return torch.linalg.vector_norm(torch.cat(partial)) if partial else torch.zeros(())


def _block_norms(flat: Tensor) -> list[Tensor]:
    """Norms of consecutive blocks of a float32 vector, in one or two tensors."""
    full = flat.numel() // BLOCK * BLOCK
    norms = [torch.linalg.vector_norm(flat[:full].view(-1, BLOCK), dim=1)] if full else []
    return norms + ([torch.linalg.vector_norm(flat[full:]).view(1)] if full < flat.numel() else [])


def as_factor(number: float | Tensor) -> Factor:
    """``number`` as a factor on gradients: a float, but a tensor that is on another device stays there, unread."""
    return number if torch.is_tensor(number) and number.device.type != "cpu" else float(number)


def clip_coefficient(norm: Tensor, max_norm: float) -> Factor:
    """``min(1, max_norm / (norm + 1e-6))``; NaN for a NaN norm. Reading it from another device is left to the caller."""
    return as_factor((max_norm / (norm + 1e-6)).clamp(max=1.0))


def clip(
    grads: Sequence[Tensor], max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Scale ``grads`` in place to a total norm of at most ``max_norm`` (0: leave them); returns the norm before."""
    norm = total_norm(grads)
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0 and grads:
        torch._foreach_mul_(list(grads), clip_coefficient(norm, max_norm))
    return norm
