"""Fast feedforward through matrix products of all nodes: for wide shallow trees, where a token visits many of them.

The same sums as of the visited rows (a node that is not visited counts with 0), in the order of the matrix library. So that
weights and tokens which are not finite reach what depends on them and nothing else, the CPU computes again by rows where
a result is not finite (a device does not: the host would have to wait for it). Logits are float32 in half precision too,
and so are the decisions.

Legend: T tokens, P trees of depth D and n nodes each, N = P n rows of the tables.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairseq.ops.fff_reference import activate, nodes_of_tree, routes_of_logits, slope, wide
from fairseq.ops.linear import product

#: A node's row is used up to so many times as quickly by a product as by a walk: measured on two processors, estimated for devices.
GAIN = {"cpu": 5, "cuda": 16}
_FEWEST = 8  # visits of a row, on average, before reading all of them pays
_SMALLEST = 1 << 18  # numbers in a table


def pays(x: Tensor, weight_in: Tensor, depth: int) -> bool:
    """Whether products are quicker than a walk, by sizes alone."""
    nodes, visited = nodes_of_tree(depth), depth + 1
    if visited * GAIN.get(x.device.type, 0) < nodes or weight_in.numel() < _SMALLEST:
        return False
    if depth and x.is_cuda and weight_in.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return False  # rounded products would decide otherwise
    return math.prod(x.shape[:-1]) * visited >= _FEWEST * nodes


def forward_products(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``forward_gathered``."""
    rows, kind = x.reshape(-1, x.size(-1)), wide(weight_in)
    logits = _product(rows, weight_in, x, weight_in)
    logits = (logits if bias_in is None else logits.add_(bias_in)).view(len(rows), num_trees, nodes_of_tree(depth))
    nodes = torch.zeros_like(logits, dtype=torch.int64) if keep and not depth else None
    if depth:
        nodes = routes_of_logits(logits, depth)
        logits = logits.gather(-1, nodes)
    factors = _all_nodes(activate(logits, activation), nodes, depth)
    y = _product(factors, weight_out.t(), x, weight_in).to(x.dtype).view(*x.shape[:-1], weight_out.size(1))
    if depth and _spoilt(y):
        arguments = (x, weight_in, bias_in, weight_out, depth, num_trees, activation, keep)
        return torch.ops.fairseq.fast_feed_forward_forward.default(*arguments)
    if nodes is None or not keep:
        return y, x.new_empty(0, dtype=torch.int32), x.new_empty(0, dtype=kind)
    return y, nodes.int(), logits


def backward_products(
    grad: Tensor,
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    activation: str,
    for_x: bool,
    for_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``backward_gathered``."""
    rows, up = (t.reshape(-1, t.size(-1)) for t in (x, grad))
    depth, nothing, at = nodes.size(2) - 1, weight_in.new_empty(0), nodes.long()
    slopes = _product(up, weight_out, x, weight_in).view(len(nodes), nodes.size(1), nodes_of_tree(depth))
    slopes = (slopes.gather(-1, at) if depth else slopes) * slope(logits, activation)
    dlogits = _all_nodes(slopes, at, depth)
    results = [nothing] * 4
    if for_x:
        results[0] = _product(dlogits, weight_in.t(), x, weight_in).to(x.dtype).view(x.shape)
    if for_weights:
        factors = _all_nodes(activate(logits, activation), at, depth)
        sums = (
            _product(dlogits.t(), rows.t(), x, weight_in),
            dlogits.sum(0),
            _product(factors.t(), up.t(), x, weight_in),
        )
        results[1:] = [total.to(weight_in.dtype) for total in sums]
    if depth and any(_spoilt(result) for result in results):
        arguments = (grad, x, weight_in, weight_out, nodes, logits, activation, for_x, for_weights)
        return torch.ops.fairseq.fast_feed_forward_backward.default(*arguments)
    dx, dweight_in, dbias, dweight_out = (t.clone() if t is nothing else t for t in results)
    return dx, dweight_in, dbias, dweight_out


def _all_nodes(values: Tensor, nodes: Tensor | None, depth: int) -> Tensor:
    """(T, P, D + 1) values of visited nodes to (T, N), 0 at others."""
    if depth and nodes is not None:
        everywhere = values.new_zeros(*values.shape[:2], nodes_of_tree(depth))
        values = everywhere.scatter_(-1, nodes, values)
    return values.flatten(1)


def _product(a: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """a b' in float32, or float64; on a device, if all is half precision, of numbers rounded to it."""
    kind = wide(weight)
    if x.is_cuda and x.dtype == weight.dtype != kind and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a.to(x.dtype), b.t().to(x.dtype), out_dtype=kind)
    return product(a.to(kind), b.to(kind))


def _spoilt(result: Tensor) -> bool:
    return result.device.type == "cpu" and not bool(result.isfinite().all())
