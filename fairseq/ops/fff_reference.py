"""Fast feedforward networks in plain PyTorch: all nodes and a mask, or rows gathered level by level.

The first, ``fast_feed_forward_reference``, is what the layer means; the second is the operator of ``fairseq.ops.fff``
where no kernel was compiled, and like it reads and differentiates the rows of visited nodes only.

Legend: T tokens (all leading dimensions), I and O channels in and out, P trees of depth D, n = 2^(D + 1) - 1 nodes each,
N = P n; row t n + j belongs to node j of tree t.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def fast_feed_forward_reference(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int = 1,
    activation: str = "gelu",
) -> Tensor:
    """The same by masking all nodes; differentiable. Tensors of one type."""
    logits = F.linear(x, weight_in, bias_in).unflatten(-1, (num_trees, -1))
    nodes = routes_of_logits(logits.detach(), depth)
    mask = torch.zeros_like(logits).scatter_(-1, nodes, 1)
    return torch.matmul((activate(logits, activation) * mask).flatten(-2), weight_out)


def routes_of_logits(logits: Tensor, depth: int) -> Tensor:
    """(..., P, n) logits of all nodes to (..., P, D + 1) visited nodes."""
    nodes = [torch.zeros_like(logits[..., :1], dtype=torch.int64)]
    for _ in range(depth):
        nodes.append(_child(nodes[-1], logits.gather(-1, nodes[-1])))
    return torch.cat(nodes, dim=-1)


def forward_gathered(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, nodes (T, P, D + 1; int32) and logits of the same shape; those two are empty without ``keep``."""
    kind, rows = wide(weight_in), x.reshape(-1, x.size(-1))
    sums = torch.zeros(len(rows), weight_out.size(1), dtype=kind, device=x.device)
    nodes, logits = _walk(rows.to(kind), weight_in, bias_in, depth, num_trees)
    for tree in range(num_trees):
        for level in range(depth + 1):
            at = nodes[:, tree, level] + tree * nodes_of_tree(depth)
            sums += activate(logits[:, tree, level, None], activation) * weight_out[at].to(kind)
    y = sums.to(x.dtype).view(*x.shape[:-1], weight_out.size(1))
    if not keep:
        return y, x.new_empty(0, dtype=torch.int32), x.new_empty(0, dtype=kind)
    return y, nodes.int(), logits


def backward_gathered(
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
    """Gradients of x, weight_in, bias_in and weight_out; those not asked for are empty."""
    kind, nothing = logits.dtype, weight_in.new_empty(0)
    rows, up = (t.reshape(-1, t.size(-1)).to(kind) for t in (x, grad))
    dx = torch.zeros_like(rows)
    sums = [torch.zeros(t.shape, dtype=kind, device=x.device) for t in (weight_in, weight_in[:, 0], weight_out)]
    activations, slopes = activate(logits, activation), slope(logits, activation)
    for tree in range(nodes.size(1)):
        for level in range(nodes.size(2)):
            at = nodes[:, tree, level].long() + tree * nodes_of_tree(nodes.size(2) - 1)
            dz = (up * weight_out[at].to(kind)).sum(-1) * slopes[:, tree, level]
            if for_x:
                dx += dz[:, None] * weight_in[at].to(kind)
            if for_weights:
                parts = (dz[:, None] * rows, dz, activations[:, tree, level, None] * up)
                for total, part in zip(sums, parts, strict=True):
                    _add_rows(total, at, part)
    dx = dx.to(x.dtype).view(x.shape) if for_x else x.new_empty(0)
    if not for_weights:
        return dx, nothing, nothing.clone(), nothing.clone()
    dweight_in, dbias, dweight_out = (total.to(weight_in.dtype) for total in sums)
    return dx, dweight_in, dbias, dweight_out


def routes_gathered(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, num_trees: int) -> Tensor:
    rows = x.reshape(-1, x.size(-1)).to(wide(weight_in))
    nodes, _ = _walk(rows, weight_in, bias_in, depth, num_trees)
    return nodes.view(*x.shape[:-1], num_trees, depth + 1)


def _walk(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, num_trees: int) -> tuple[Tensor, Tensor]:
    """Visited nodes (int64) and their logits, (T, P, D + 1) each, for wide rows ``x`` (T, I)."""
    nodes = torch.zeros(len(x), num_trees, depth + 1, dtype=torch.int64, device=x.device)
    logits = x.new_zeros(nodes.shape)
    for tree in range(num_trees):
        for level in range(depth + 1):
            here = nodes[:, tree, level]
            at = here + tree * nodes_of_tree(depth)
            logit = (x * weight_in[at].to(x.dtype)).sum(-1)
            logit = logit if bias_in is None else logit + bias_in[at].to(x.dtype)
            logits[:, tree, level] = logit
            if level < depth:
                nodes[:, tree, level + 1] = _child(here, logit)
    return nodes, logits


def _child(nodes: Tensor, logits: Tensor) -> Tensor:
    return 2 * nodes + 1 + (logits > 0)


def nodes_of_tree(depth: int) -> int:
    return (1 << (depth + 1)) - 1


def _add_rows(total: Tensor, at: Tensor, rows: Tensor) -> None:
    """total[at] += rows, in an order that is always the same."""
    if total.is_cuda:  # where index_add_ uses atomics
        total.index_put_((at,), rows, accumulate=True)
    else:
        total.index_add_(0, at, rows)


def activate(logits: Tensor, activation: str) -> Tensor:
    return F.gelu(logits) if activation == "gelu" else F.relu(logits)


def slope(logits: Tensor, activation: str) -> Tensor:
    """The derivative of the activation."""
    if activation == "relu":
        return (logits > 0).to(logits.dtype)
    density = torch.exp(-0.5 * logits.square()) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(logits / math.sqrt(2))) + logits * density


def wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
