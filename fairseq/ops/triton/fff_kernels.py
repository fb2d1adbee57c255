"""Fast feedforward on CUDA: the operators of ``fairseq/ops/fff.py``, reading the rows of visited nodes only.

Forward, a program walks one tree for one token; what it reads are rows of ``weight_in``, which the second-level cache holds (a
tree of 4095 nodes 768 wide takes 6 MB in half precision). Everything else is one kind of sum: rows of a table, picked
by number and multiplied, added up by segments of the list of picks. The output of a token is such a sum over the
nodes that it visits, the gradient of x too. For the gradients of the weights the (token, node) pairs are sorted by node,
and cut into pieces, so that the root's sum, over all tokens, is the work of many programs; pieces are added up in order.
Nothing is atomic, so results have the same bits every time, and the host reads nothing, so it waits for nothing.

Sums are in float32, and so is the decision. Reference implementation: ``fairseq/ops/fff_reference.py``.

Legend: T tokens, I and O channels in and out, P trees of n nodes and L levels each, M = P L pairs of a token with the
nodes that it visits, N = P n rows of the tables.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops.fff_reference import nodes_of_tree, routes_gathered

PIECE = (
    128  # pairs that a program adds up for one node: few enough for thousands of programs, many for few partial sums
)
_WIDTH = 256  # columns of a tile: one access of 16 bytes of half precision for each of 32 threads
_ROWS = 4  # of a tile; they are on their way at the same time
_WIDEST = 1024  # columns of x that a walk keeps in registers


def _forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor | None,
    weight_out: Tensor,
    depth: int,
    num_trees: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _fits(x, depth, num_trees):
        return NotImplemented
    nodes, logits, activations = _walk(x, weight_in, bias_in, depth, num_trees, activation)
    y = x.new_empty(*x.shape[:-1], weight_out.size(1))
    _by_token(activations, nodes, weight_out, y)
    return (y, nodes, logits) if keep else (y, nodes.new_empty(0), logits.new_empty(0))


def _backward(
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
    if not _fits(x, nodes.size(2) - 1, nodes.size(1)):
        return NotImplemented
    tokens, pairs = len(nodes), nodes.size(1) * nodes.size(2)
    grad, rows = grad.contiguous(), _rows(nodes)
    dlogits, activations = torch.empty_like(logits), torch.empty_like(logits)
    if tokens:
        columns = weight_out.size(1)
        _slopes_kernel[(tokens, triton.cdiv(pairs, _ROWS))](
            grad, weight_out.contiguous(), rows, logits.contiguous(), dlogits, activations, columns, pairs,
            GELU=activation == "gelu", ROWS=_ROWS, WIDTH=_width(columns), num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if for_x else x.new_empty(0)
    if for_x:
        _by_token(dlogits, nodes, weight_in, dx)
    if not for_weights:
        return dx, weight_in.new_empty(0), weight_in.new_empty(0), weight_in.new_empty(0)
    picks = _Picks(rows, len(weight_in))
    dweight_in = picks.sums(dlogits, x.reshape(tokens, x.size(-1)), weight_in.dtype)
    dbias = picks.sums(dlogits, logits.new_ones(tokens, 1), weight_in.dtype).view(-1)
    return dx, dweight_in, dbias, picks.sums(activations, grad.view(tokens, grad.size(-1)), weight_in.dtype)


def _routes(x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, num_trees: int) -> Tensor:
    if not _fits(x, depth, num_trees):
        return NotImplemented
    nodes, *_ = _walk(x, weight_in, bias_in, depth, num_trees, "relu")
    return nodes.long().view(*x.shape[:-1], num_trees, depth + 1)


def _fits(x: Tensor, depth: int, trees: int) -> bool:
    """Whether pairs are counted in 32 bits."""
    return math.prod(x.shape[:-1]) * trees * (depth + 1) < 1 << 31


def _width(columns: int) -> int:
    return min(_WIDTH, max(16, triton.next_power_of_2(columns)))


def _walk(
    x: Tensor, weight_in: Tensor, bias_in: Tensor | None, depth: int, trees: int, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (int32), logits and activations (float32), (T, P, L) each."""
    tokens, columns, levels = math.prod(x.shape[:-1]), x.size(-1), depth + 1
    nodes = torch.empty(tokens, trees, levels, dtype=torch.int32, device=x.device)
    logits, activations = (torch.empty(nodes.shape, dtype=torch.float32, device=x.device) for _ in range(2))
    width = min(_WIDEST, max(16, triton.next_power_of_2(columns)))
    if tokens:
        _walk_kernel[(tokens * trees,)](
            x.contiguous(), weight_in.contiguous(), weight_in if bias_in is None else bias_in.contiguous(),
            nodes, logits, activations, columns, trees, levels, nodes_of_tree(depth),
            HAS_BIAS=bias_in is not None, GELU=activation == "gelu", WIDTH=width,
            num_warps=max(1, width // 512), enable_fp_fusion=True,
        )  # fmt: skip
    return nodes, logits, activations


def _rows(nodes: Tensor) -> Tensor:
    """The rows of nodes in the tables, (T, P, L)."""
    trees, levels = nodes.shape[1:]
    if trees == 1:
        return nodes.contiguous()
    first = torch.arange(trees, dtype=torch.int32, device=nodes.device) * nodes_of_tree(levels - 1)
    return nodes + first[:, None]


def _by_token(factors: Tensor, nodes: Tensor, table: Tensor, out: Tensor) -> None:
    """Into ``out`` (..., columns): the visited rows of ``table`` times ``factors`` (T, P, L), added up."""
    tokens, pairs = len(nodes), nodes.size(1) * nodes.size(2)
    starts = torch.arange(0, tokens * pairs + 1, pairs, dtype=torch.int32, device=nodes.device)
    _segments(factors, _rows(nodes), starts, table, out)


def _segments(factors: Tensor, rows: Tensor, starts: Tensor, table: Tensor, out: Tensor) -> None:
    """out[s] = sum of factors[i] * table[rows[i]] over starts[s] <= i < starts[s + 1]."""
    columns = table.size(1)
    width = _width(columns)
    if out.numel():
        _segments_kernel[(len(starts) - 1, triton.cdiv(columns, width))](
            factors, rows, starts, table.contiguous(), out, columns,
            ROWS=_ROWS, WIDTH=width, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip


class _Picks:
    """The pairs of all tokens sorted by row, and cut into pieces of at most PIECE that belong to one row each."""

    def __init__(self, rows: Tensor, count: int) -> None:
        """``rows`` (T, P, L) below ``count``."""
        sorted_rows, self.order = torch.sort(rows.flatten(), stable=True)
        self.tokens = (self.order // max(1, rows[0].numel() if len(rows) else 1)).int()
        numbers = torch.arange(count + 1, dtype=torch.int32, device=rows.device)
        first = torch.searchsorted(sorted_rows, numbers)  # pair of a row
        self.first_piece = torch.zeros_like(first)
        torch.cumsum((first.diff() + PIECE - 1) // PIECE, 0, out=self.first_piece[1:])
        # How many pieces there are is known on the device only; here, what they cannot exceed. Those too many are empty.
        self.most = rows.numel() // PIECE + min(count, rows.numel())
        piece = torch.arange(self.most + 1, device=rows.device)
        row = torch.searchsorted(self.first_piece[1:], piece, right=True).clamp_(max=count - 1)
        begin = first[row] + (piece - self.first_piece[row]) * PIECE
        self.starts = torch.minimum(begin, first[row + 1])

    def sums(self, factors: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        """(N, columns): for each row, the sum of the tokens' rows of ``table`` (T, columns) times ``factors`` (T, P, L)."""
        columns = table.size(1)
        parts = torch.empty(self.most, columns, dtype=torch.float32, device=table.device)
        _segments(factors.flatten()[self.order], self.tokens, self.starts, table, parts)
        total = torch.empty(len(self.first_piece) - 1, columns, dtype=dtype, device=table.device)
        each = torch.arange(self.most, dtype=torch.int32, device=table.device)
        _segments(torch.ones_like(each, dtype=torch.float32), each, self.first_piece, parts, total)
        return total


def _problems(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)
    depth, trees, columns_in, columns_out = 2, 2, 300, 270

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = trees * nodes_of_tree(depth)
    x, weight_in, bias = normal(PIECE + 9, columns_in), normal(rows, columns_in) * columns_in**-0.5, normal(rows)
    # On each level a column of its own decides, by more than rounding could turn around.
    level = torch.cat([torch.full((1 << at,), at) for at in range(depth + 1)]).repeat(trees)
    x[:, : depth + 1] = torch.where(normal(len(x), depth + 1) > 0, 8.0, -8.0)
    weight_in[:, : depth + 1] = torch.nn.functional.one_hot(level, depth + 1)
    weight_out, grad = normal(rows, columns_out), normal(len(x), columns_out)
    x, weight_in, bias, weight_out, grad = (t.to(device, dtype) for t in (x, weight_in, bias, weight_out, grad))
    nodes = routes_gathered(x, weight_in, bias, depth, trees).int()
    logits = normal(*nodes.shape).to(device)
    return {
        "fast_feed_forward_forward": (x, weight_in, bias, weight_out, depth, trees, "gelu", True),
        "fast_feed_forward_backward": (grad, x, weight_in, weight_out, nodes, logits, "gelu", True, True),
        "fff_routes": (x, weight_in, bias, depth, trees),
    }


OPERATORS = {
    "fast_feed_forward_forward": _forward,
    "fast_feed_forward_backward": _backward,
    "fff_routes": _routes,
}
PROBLEMS = _problems


@triton.jit
def _share(z):
    """How much of a standard normal variable is below z."""
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _activated(z, GELU: tl.constexpr):
    return z * _share(z) if GELU else tl.where(z <= 0, 0.0, z)


@triton.jit
def _slope(z, GELU: tl.constexpr):
    return _share(z) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327 if GELU else tl.where(z > 0, 1.0, 0.0)


@triton.jit(do_not_specialize=["trees", "levels", "tree_nodes"])
def _walk_kernel(
    x, weight, bias, nodes, logits, activations, columns, trees, levels, tree_nodes,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    first_row = index % trees * tree_nodes
    x += (index // trees).to(tl.int64) * columns
    at = tl.arange(0, WIDTH)
    beginning = tl.load(x + at, mask=at < columns, other=0.0).to(tl.float32)
    to = index.to(tl.int64) * levels
    node = index * 0
    for level in range(levels):
        key = weight + (first_row + node).to(tl.int64) * columns
        z = tl.sum(beginning * tl.load(key + at, mask=at < columns, other=0.0).to(tl.float32), 0)
        for start in range(WIDTH, columns, WIDTH):
            inside = start + at < columns
            more = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
            z += tl.sum(more * tl.load(key + start + at, mask=inside, other=0.0).to(tl.float32), 0)
        if HAS_BIAS:
            z += tl.load(bias + first_row + node).to(tl.float32)
        tl.store(nodes + to + level, node)
        tl.store(logits + to + level, z)
        tl.store(activations + to + level, _activated(z, GELU))
        node = 2 * node + 1 + (z > 0).to(tl.int32)  # zero and NaN go left


@triton.jit(do_not_specialize=["pairs"])
def _slopes_kernel(
    grad, weight, rows, logits, dlogits, activations, columns, pairs,
    GELU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    pair = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    here = pair < pairs
    value = weight + tl.load(rows + token * pairs + pair, mask=here, other=0).to(tl.int64)[:, None] * columns
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, columns, WIDTH):
        column = start + tl.arange(0, WIDTH)
        up = tl.load(grad + token * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        inside = here[:, None] & (column < columns)[None, :]
        total += up[None, :] * tl.load(value + column[None, :], mask=inside, other=0.0).to(tl.float32)
    z = tl.load(logits + token * pairs + pair, mask=here, other=0.0)
    tl.store(dlogits + token * pairs + pair, tl.sum(total, 1) * _slope(z, GELU), mask=here)
    tl.store(activations + token * pairs + pair, _activated(z, GELU), mask=here)


@triton.jit
def _segments_kernel(factors, rows, starts, table, out, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    end = tl.load(starts + segment + 1)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(tl.load(starts + segment), end, ROWS):
        at = first + tl.arange(0, ROWS)
        factor = tl.load(factors + at, mask=at < end, other=0.0)
        row = table + tl.load(rows + at, mask=at < end, other=0).to(tl.int64)[:, None] * columns
        inside = (at < end)[:, None] & (column < columns)[None, :]
        total += factor[:, None] * tl.load(row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + segment * columns + column, tl.sum(total, 0).to(out.dtype.element_ty), mask=column < columns)
