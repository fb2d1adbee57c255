"""Fast feedforward networks (Belcak and Wattenhofer, arXiv 2311.10770): ``fast_feed_forward`` and ``fff_routes``.

Of N nodes a token visits one a level, in each of P binary trees: node j goes on to its left child 2j + 1 or its right one
2j + 2, right when its logit is above 0 (zero and NaN go left). The output is the sum of ``activation(logit)`` times the
output row over the visited nodes, all levels alike; nothing flows through the decisions. The operator reads and differentiates
the rows of visited nodes only, so what stands in other rows, NaN included, has no influence, and their gradients are
exact zeros. Kernels: ``fairseq/csrc/torch/fast_feed_forward_cpu.cpp`` and ``fairseq/ops/triton/fff_kernels.py``;
elsewhere, and as the reference implementation: ``fff_reference.py``. Wide shallow trees, most of whose nodes a token
visits, go through matrix products instead (``fff_products.py``), as a dense layer does.

Half precision: products add up in float32, and the decision is on that sum. The published code rounds logits to the half type
first, so that a small logit which rounds to zero goes left there, and activations and outputs are rounded once more.

Legend: T tokens (all leading dimensions), I and O channels in and out, P trees of depth D, n = 2^(D + 1) - 1 nodes each,
N = P n; row t n + j belongs to node j of tree t.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Any

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.fff_products import backward_products, forward_products, pays
from fairseq.ops.fff_reference import (
    backward_gathered,
    forward_gathered,
    nodes_of_tree,
    routes_gathered,
    wide,
)
from fairseq.ops.self_check import Source

ACTIVATIONS = ("gelu", "relu")
DEEPEST = 24  # node ids are kept in 32 bits


def fast_feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int = 1,
    activation: str = "gelu",
) -> Tensor:
    """(..., I) to (..., O), in the type of ``x``.

    Args:
        x: (..., I), of any strides.
        weight_in: (N, I), of the type of ``x``, or float32 beside half precision (what autocast makes of float32).
        bias_in: (N,) or None.
        weight_out: (N, O).
        depth: D; 0 is one node a tree, an ordinary feed-forward of width P.
        num_trees: P.
        activation: ``gelu`` (exact) or ``relu``.

    Raises:
        ValueError: shapes, types or names that do not fit.
    """
    _check(x, weight_in, bias_in, weight_out, depth, num_trees)
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be gelu or relu, but is {activation!r}")
    tensors = (x, weight_in, bias_in, weight_out)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    operators = torch.ops.fairseq
    forward = operators.fff_products_forward if pays(x, weight_in, depth) else operators.fast_feed_forward_forward
    return forward.default(*tensors, depth, num_trees, activation, keep)[0]


def fff_routes(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, num_trees: int = 1) -> Tensor:
    """The visited nodes, numbered within their tree from the root's 0, level by level: (..., P, D + 1) int64."""
    _check(x, weight_in, bias_in, None, depth, num_trees)
    return torch.ops.fairseq.fff_routes.default(x, weight_in, bias_in, depth, num_trees)


def _check(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, weight_out: Tensor | None, depth: int, num_trees: int
) -> None:
    if not 0 <= depth <= DEEPEST or num_trees < 1:
        raise ValueError(
            f"`depth` must be 0 to {DEEPEST} and `num_trees` at least 1, but they are {depth} and {num_trees}"
        )
    rows = num_trees * nodes_of_tree(depth)
    if x.dim() < 1 or weight_in.dim() != 2 or weight_in.size(0) != rows or weight_in.size(1) != x.size(-1):
        raise ValueError(
            f"with {num_trees} trees of depth {depth}, `x` must be (..., I) and `weight_in` ({rows}, I), but they have "
            f"shapes {tuple(x.shape)} and {tuple(weight_in.shape)}"
        )
    if bias_in is not None and (bias_in.dim() != 1 or bias_in.size(0) != rows):
        raise ValueError(f"`bias_in` must have shape ({rows},), but has {tuple(bias_in.shape)}")
    if weight_out is not None and (weight_out.dim() != 2 or weight_out.size(0) != rows):
        raise ValueError(f"`weight_out` must have shape ({rows}, O), but has {tuple(weight_out.shape)}")
    kind = weight_in.dtype
    if any(t is not None and t.dtype != kind for t in (bias_in, weight_out)):
        raise ValueError("`weight_in`, `bias_in` and `weight_out` must have one type")
    if not x.is_floating_point() or (x.dtype != kind and not torch.is_autocast_enabled(x.device.type)):
        mixed = kind == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)
        if not mixed:
            raise ValueError(
                f"`x` must have the floating-point type of the weights, {kind}, or half precision beside float32 "
                f"weights, but is {x.dtype}"
            )


def _forward_fake(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (math.prod(x.shape[:-1]), num_trees, depth + 1) if keep else (0,)
    nodes, logits = x.new_empty(shape, dtype=torch.int32), x.new_empty(shape, dtype=wide(weight_in))
    return x.new_empty(*x.shape[:-1], weight_out.size(1)), nodes, logits


def _backward_fake(
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
    shapes = (weight_in.shape, weight_in.shape[:1], weight_out.shape) if for_weights else (0, 0, 0)
    dweight_in, dbias, dweight_out = (weight_in.new_empty(shape) for shape in shapes)
    return x.new_empty(x.shape if for_x else 0), dweight_in, dbias, dweight_out


def _routes_fake(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, num_trees: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], num_trees, depth + 1), dtype=torch.int64)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight_in, bias_in, weight_out, _, _, ctx.activation, ctx.keep = inputs
    _, nodes, logits = output
    ctx.has_bias = bias_in is not None
    ctx.mark_non_differentiable(nodes, logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight_in, weight_out, nodes, logits)


def _backward(operator: str, ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:4]
    if grad is None:
        return (None,) * 8
    if not ctx.keep:
        raise RuntimeError(f"{operator}_forward was called without `keep`, so there is no gradient")
    arguments = (grad, *ctx.saved_tensors, ctx.activation, wanted[0], any(wanted[1:]))
    gradients = getattr(torch.ops.fairseq, f"{operator}_backward").default(*arguments)
    kept = (gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))
    return (*kept, None, None, None, None)


def _under_autocast(operator: str, x: Tensor, *rest: Any) -> Any:
    """Rounds ``x`` as autocast does for products; the weights are read as they are, because a copy would cost more."""
    device = x.device.type
    kind = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return getattr(torch.ops.fairseq, operator).default(x.to(kind) if _rounded(x) else x, *rest)


def _rounded(x: Tensor) -> bool:
    return x.dtype != torch.float64  # autocast leaves float64 alone


def _kernels() -> Any:
    return importlib.import_module("fairseq.ops.triton.fff_kernels")  # not without need: it imports Triton


_WEIGHTS = "Tensor weight_in, Tensor? bias_in"
_TREE = "int depth, int num_trees"
for _name, _forward_kernel, _backward_kernel in (
    ("fast_feed_forward", forward_gathered, backward_gathered),
    ("fff_products", forward_products, backward_products),
):
    library.define(
        f"{_name}_forward(Tensor x, {_WEIGHTS}, Tensor weight_out, {_TREE}, str activation, bool keep) "
        "-> (Tensor, Tensor, Tensor)",
        _forward_kernel,
        _forward_fake,
    )
    library.define(
        f"{_name}_backward(Tensor grad, Tensor x, Tensor weight_in, Tensor weight_out, Tensor nodes, Tensor logits, "
        "str activation, bool for_x, bool for_weights) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward_kernel,
        _backward_fake,
    )
    torch.library.register_autograd(
        f"fairseq::{_name}_forward", functools.partial(_backward, _name), setup_context=_keep_for_backward
    )
library.define(f"fff_routes(Tensor x, {_WEIGHTS}, {_TREE}) -> Tensor", routes_gathered, _routes_fake)
SOURCE = Source(
    _kernels,
    {
        "fast_feed_forward_forward": forward_gathered,
        "fast_feed_forward_backward": backward_gathered,
        "fff_routes": routes_gathered,
    },
)
library.define_on_cuda(SOURCE)
for _name in ("fast_feed_forward_forward", "fff_products_forward", "fff_routes"):
    for _key in ("AutocastCPU", "AutocastCUDA"):
        torch.library.impl(f"fairseq::{_name}", _key, functools.partial(_under_autocast, _name))
torch.library.define(
    "fairseq::fast_feed_forward",
    f'(Tensor x, {_WEIGHTS}, Tensor weight_out, int depth, int num_trees=1, str activation="gelu") -> Tensor',
)
torch.library.impl("fairseq::fast_feed_forward", "CompositeImplicitAutograd", fast_feed_forward)
library.load()
