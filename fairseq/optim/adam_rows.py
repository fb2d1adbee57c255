"""The Adam update of visited rows only: those of a parameter whose gradient is not all zeros.

Copying costs more than updating. So where most rows were visited everything is updated and the others are put back, and
where few were (which only the CPU is asked) these are copied out, updated and copied in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fairseq.optim.adam_update import Hyperparameters, Segment, update
from fairseq.optim.fairseq_optimizer import Factor


def visited_rows(grad: Tensor) -> Tensor:
    """(N, ...) -> (N,) bool: where ``grad`` has something other than zeros (NaN is something)."""
    if not grad.numel():  # a shard without rows
        return torch.zeros(grad.size(0), dtype=torch.bool, device=grad.device)
    rows = grad.reshape(grad.size(0), -1)
    return rows.amax(dim=1).ne(0) | rows.amin(dim=1).ne(0)  # three times as quick as any()


def update_visited(segments: list[Segment], hyper: Hyperparameters, factor: Factor = 1.0) -> None:
    """As ``update``, for visited rows (of the first dimension); all other rows keep weights and moments to the bit."""
    for segment in segments:  # one after the other, because of the memory for copies
        visited = visited_rows(segment.grad)
        if visited.device.type != "cpu":
            _update_where(visited, segment, hyper, factor)
        elif 2 * int(visited.sum()) < len(visited):
            _update_copies(visited.nonzero().squeeze(1), segment, hyper, factor)
        else:
            _update_but(visited.logical_not().nonzero().squeeze(1), segment, hyper, factor)


def _update_where(visited: Tensor, segment: Segment, hyper: Hyperparameters, factor: Factor) -> None:
    before = [tensor.clone() for tensor in _written(segment)]
    update([segment], hyper, factor)
    for tensor, old in zip(_written(segment), before, strict=True):
        tensor.copy_(torch.where(visited.view(-1, *[1] * (tensor.dim() - 1)), tensor, old))


def _update_but(rows: Tensor, segment: Segment, hyper: Hyperparameters, factor: Factor) -> None:
    before = [tensor.index_select(0, rows) for tensor in _written(segment)]
    update([segment], hyper, factor)
    for tensor, old in zip(_written(segment), before, strict=True):
        tensor.index_copy_(0, rows, old)


def _update_copies(rows: Tensor, segment: Segment, hyper: Hyperparameters, factor: Factor) -> None:
    param, grad, exp_avg, exp_avg_sq = (tensor.index_select(0, rows) for tensor in segment[:4])
    half = segment.low_precision
    copies = Segment(param, grad, exp_avg, exp_avg_sq, None if half is None else half.index_select(0, rows))
    update([copies], hyper, factor)
    for tensor, new in zip(_written(segment), _written(copies), strict=True):
        tensor.index_copy_(0, rows, new)


def _written(segment: Segment) -> list[Tensor]:
    tensors = (segment.param, segment.exp_avg, segment.exp_avg_sq, segment.low_precision)
    return [tensor for tensor in tensors if tensor is not None]
