"""Convolutions of state-space models by chunks on CUDA: the operators of ``fairseq/ops/ssm.py``.

The products of all chunks are made at once, on tensor cores; between them only the states go from chunk to chunk, each
number by itself. Forward: what every chunk adds to the state, the states before the chunks, the outputs. Backward: the
same with transposed matrices in the other direction, and the gradients of the matrices, added up by a fixed number of
programs over strips of chunks and then over the programs. Nothing is atomic, so results are the same every time.

In half precision the operands of products have the type of u, and sums, states and their recurrence are in float32.
float16 has not the range for states: what is multiplied with them is rounded to TensorFloat-32, which has its precision.

Legend: B sequences, L positions, C channels, N modes, S = 2N numbers of a state, Q positions of a chunk, M chunks,
P = B M pieces, the chunks of all sequences.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairseq.ops.tensorfloat import precision

STRIPS = 64  # programs that add up gradients of matrices, for each tile of these
_SCAN = {"MODES": 4, "COLUMNS": 64, "num_warps": 1}  # of a program that carries states on


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a tile of results, and how much of their sums is read at a time."""

    ROWS: int
    COLUMNS: int
    DEPTH: int
    num_warps: int
    num_stages: int


def tile(kernel: str, itemsize: int) -> Tile:
    """Of ``products`` or ``outer``. float32 takes no tensor cores unless TensorFloat-32 is allowed, and many registers."""
    if itemsize == 4:
        return Tile(64, 32, 32, 4, 1)
    return Tile(128, 64, 64, 4, 2) if kernel == "products" else Tile(64, 64, 64, 4, 2)


def _forward(u: Tensor, within: Tensor, into: Tensor, out: Tensor, turn: Tensor, reverse: bool) -> Tensor:
    cut = _Chunks.of(u, within, into)
    x = u.contiguous()
    states = cut.states(cut.added(into, x), turn, reverse) if cut.count > 1 else None
    return cut.outputs(within, x, out, states)


def _backward(
    grad: Tensor, u: Tensor, within: Tensor, into: Tensor, out: Tensor, turn: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cut = _Chunks.of(u, within, into)
    x, up = u.contiguous(), grad.contiguous()
    if cut.count == 1:  # no state is taken over
        du = cut.outputs(within.T, up, into.T, None)
        return du, cut.outer(up, x), torch.zeros_like(into), torch.zeros_like(out), torch.zeros_like(turn)
    states = cut.states(cut.added(into, x), turn, reverse)
    # Gradients travel the other way, with the conjugate factor.
    carried, dturn = cut.carried(cut.added(out.T, up), turn, reverse, states)
    du = cut.outputs(within.T, up, into.T, carried)
    return du, cut.outer(up, x), cut.outer(carried, x), cut.outer(up, states), dturn


@dataclass(frozen=True)
class _Chunks:
    """How sequences are cut, and what is done to all pieces."""

    sequences: int
    length: int
    channels: int
    size: int  # Q
    numbers: int  # S
    dtype: torch.dtype

    @staticmethod
    def of(u: Tensor, within: Tensor, into: Tensor) -> _Chunks:
        sequences, length, channels = u.shape
        return _Chunks(sequences, length, channels, len(within), len(into), u.dtype)

    @property
    def count(self) -> int:
        return triton.cdiv(self.length, self.size)

    @property
    def operand(self) -> torch.dtype:
        """Type in which states are multiplied."""
        return torch.float32 if self.dtype == torch.float16 else self.dtype

    @property
    def precision(self) -> str:
        return precision() if self.dtype == torch.float32 else "tf32"

    def added(self, matrix: Tensor, x: Tensor) -> Tensor:
        """(B, M, S, C) float32: ``matrix`` (S, Q) times each chunk of ``x`` (B, L, C)."""
        out = x.new_empty(self.sequences, self.count, self.numbers, self.channels, dtype=torch.float32)
        self._products(matrix, x, None, None, out)
        return out

    def outputs(self, matrix: Tensor, x: Tensor, state_matrix: Tensor, states: Tensor | None) -> Tensor:
        """(B, L, C): ``matrix`` (Q, Q) times each chunk of ``x`` plus ``state_matrix`` (Q, S) times ``states``."""
        out = torch.empty_like(x)
        self._products(matrix, x, state_matrix, states, out)
        return out

    def _products(
        self, matrix: Tensor, x: Tensor, state_matrix: Tensor | None, states: Tensor | None, out: Tensor
    ) -> None:
        into = out.dim() == 4
        rows = self.numbers if into else self.size
        by = asdict(tile("products", self.dtype.itemsize))
        tiles = triton.cdiv(rows, by["ROWS"]) * triton.cdiv(self.channels, by["COLUMNS"])
        matrix = matrix.to(self.dtype).contiguous()
        if states is None or state_matrix is None:
            state_matrix = states = matrix  # never read
        _products_kernel[(self.sequences * self.count * tiles,)](
            matrix, x, state_matrix.to(states.dtype).contiguous(), states, out, self.length, self.channels, self.count,
            Q=self.size, S=self.numbers, INTO=into, WITH_STATES=states is not matrix, PRECISION=self.precision,
            enable_fp_fusion=True, **by,
        )  # fmt: skip

    def states(self, added: Tensor, turn: Tensor, reverse: bool) -> Tensor:
        """The state before each chunk, from what each chunk adds to it."""
        return self._scan(added, turn, reverse, None)[0]

    def carried(self, added: Tensor, turn: Tensor, reverse: bool, states: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the state after each chunk, and that of ``turn``."""
        return self._scan(added, turn, not reverse, states)

    def _scan(self, added: Tensor, turn: Tensor, reverse: bool, states: Tensor | None) -> tuple[Tensor, Tensor]:
        before = added if self.operand == added.dtype else torch.empty_like(added, dtype=self.operand)
        modes = self.numbers // 2
        columns = triton.cdiv(self.channels, _SCAN["COLUMNS"])
        sums = added.new_empty(0 if states is None else self.sequences * columns, 2, modes)
        _scan_kernel[(self.sequences * triton.cdiv(modes, _SCAN["MODES"]) * columns,)](
            added, turn.contiguous(), before, added if states is None else states, sums, self.channels, self.count,
            N=modes, REVERSE=reverse, GRADIENT=states is not None, enable_fp_fusion=True, **_SCAN,
        )  # fmt: skip
        return before, sums.sum(0)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """The sum over pieces and channels of ``left`` times ``right``: sequences (B, L, C), or states (B, M, S, C)."""
        rows, columns = (self.numbers if x.dim() == 4 else self.size for x in (left, right))
        by = asdict(tile("outer", 4 if torch.float32 in (left.dtype, right.dtype) else 2))
        pieces = self.sequences * self.count
        strip = triton.cdiv(pieces, STRIPS)
        groups = triton.cdiv(pieces, strip)
        sums = torch.empty(groups, rows, columns, dtype=torch.float32, device=left.device)
        tiles = triton.cdiv(rows, by["ROWS"]) * triton.cdiv(columns, by["COLUMNS"])
        _outer_kernel[(groups * tiles,)](
            left, right, sums, self.length, self.channels, self.count, pieces, strip, Q=self.size, S=self.numbers,
            STATES_LEFT=left.dim() == 4, STATES_RIGHT=right.dim() == 4, PRECISION=self.precision, enable_fp_fusion=True,
            **by,
        )  # fmt: skip
        return sums.sum(0)


def _problems(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    size, modes = 128, 40
    u, grad = (normal(2, size + 77, 72).to(dtype) for _ in range(2))
    within, into, out = normal(size, size) / 11, normal(2 * modes, size) / 11, normal(size, 2 * modes) / 9
    turn = torch.stack([torch.linspace(-0.9, 0.9, modes), torch.full((modes,), 0.4)]).to(device)
    matrices = (within, into, out, turn)
    return {"ssm_chunks": (u, *matrices, True), "ssm_chunks_backward": (grad, u, *matrices, False)}


OPERATORS = {"ssm_chunks": _forward, "ssm_chunks_backward": _backward}
PROBLEMS = _problems


@triton.jit
def _part(matrix, row, rows, column, columns):
    """(len(row), len(column)) of a dense matrix (rows, columns), zeros beyond it."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def _put(matrix, row, rows, column, columns, x):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(matrix + row[:, None] * columns + column[None, :], x.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _place(piece, length, channels, chunks, Q: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr):
    """Where a piece of states, or of sequences, begins, and its number of rows."""
    wide = tl.cast(channels, tl.int64)
    if STATES:
        return piece * S * wide, S
    first = piece % chunks * Q
    return (piece // chunks * length + first) * wide, tl.minimum(length - first, Q)


@triton.jit(do_not_specialize=["length", "chunks"])
def _products_kernel(
    matrix, x, state_matrix, states, out, length, channels, chunks,
    Q: tl.constexpr, S: tl.constexpr, INTO: tl.constexpr, WITH_STATES: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of a piece of ``out``: states if INTO, else sequences."""
    HEIGHT: tl.constexpr = S if INTO else Q
    across = (HEIGHT + ROWS - 1) // ROWS
    index = tl.program_id(0)
    row = index % across * ROWS + tl.arange(0, ROWS)
    index = index // across
    strips = (channels + COLUMNS - 1) // COLUMNS
    column = index % strips * COLUMNS + tl.arange(0, COLUMNS)
    piece = index // strips
    at, rows = _place(piece, length, channels, chunks, Q, S, False)
    state_at, numbers = _place(piece, length, channels, chunks, Q, S, True)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, Q, DEPTH):
        deep = start + tl.arange(0, DEPTH)
        right = _part(x + at, deep, rows, column, channels)
        total = tl.dot(_part(matrix, row, HEIGHT, deep, Q), right, total, input_precision=PRECISION)
    if WITH_STATES:
        for start in range(0, S, DEPTH):
            deep = start + tl.arange(0, DEPTH)
            right = _part(states + state_at, deep, numbers, column, channels)
            total = tl.dot(_part(state_matrix, row, HEIGHT, deep, S), right, total, input_precision=PRECISION)
    if INTO:
        _put(out + state_at, row, numbers, column, channels, total)
    else:
        _put(out + at, row, rows, column, channels, total)


@triton.jit(do_not_specialize=["chunks"])
def _scan_kernel(
    added, turn, before, states, sums, channels, chunks,
    N: tl.constexpr, REVERSE: tl.constexpr, GRADIENT: tl.constexpr, MODES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The states before all chunks of a sequence; or, with GRADIENT, gradients of states, which turn backwards."""
    across = (channels + COLUMNS - 1) // COLUMNS
    strip = tl.program_id(0) % across
    column = strip * COLUMNS + tl.arange(0, COLUMNS)
    index = tl.program_id(0) // across
    high = (N + MODES - 1) // MODES
    mode = index % high * MODES + tl.arange(0, MODES)
    sequence = index // high
    area = tl.cast(channels, tl.int64) * N  # numbers of a half of the states of a chunk, real or imaginary
    by_re = tl.load(turn + mode, mask=mode < N, other=0.0)[:, None]
    by_im = tl.load(turn + N + mode, mask=mode < N, other=0.0)[:, None]
    if GRADIENT:
        by_im = -by_im
    re = tl.zeros((MODES, COLUMNS), tl.float32)
    im = tl.zeros((MODES, COLUMNS), tl.float32)
    turn_re = tl.zeros((MODES, COLUMNS), tl.float32)
    turn_im = tl.zeros((MODES, COLUMNS), tl.float32)
    for step in range(chunks):
        chunk = chunks - 1 - step if REVERSE else step
        at = (sequence * chunks + chunk) * 2 * area
        more_re = _part(added + at, mode, N, column, channels)
        more_im = _part(added + at + area, mode, N, column, channels)
        _put(before + at, mode, N, column, channels, re)
        _put(before + at + area, mode, N, column, channels, im)
        if GRADIENT:
            a = _part(states + at, mode, N, column, channels).to(tl.float32)
            b = _part(states + at + area, mode, N, column, channels).to(tl.float32)
            turn_re += re * a + im * b
            turn_im += im * a - re * b
        last = re
        re = by_re * last - by_im * im + more_re
        im = by_re * im + by_im * last + more_im
    if GRADIENT:
        to = sums + (sequence * across + strip) * 2 * N + mode
        tl.store(to, tl.sum(turn_re, 1), mask=mode < N)
        tl.store(to + N, tl.sum(turn_im, 1), mask=mode < N)


@triton.jit(do_not_specialize=["length", "chunks", "pieces", "strip"])
def _outer_kernel(
    left, right, sums, length, channels, chunks, pieces, strip,
    Q: tl.constexpr, S: tl.constexpr, STATES_LEFT: tl.constexpr, STATES_RIGHT: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of the sum over a strip of pieces."""
    HEIGHT: tl.constexpr = S if STATES_LEFT else Q
    WIDTH: tl.constexpr = S if STATES_RIGHT else Q
    down = (HEIGHT + ROWS - 1) // ROWS
    across = (WIDTH + COLUMNS - 1) // COLUMNS
    row = tl.program_id(0) % down * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // down % across * COLUMNS + tl.arange(0, COLUMNS)
    group = tl.program_id(0) // (down * across)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for piece in range(group * strip, tl.minimum((group + 1) * strip, pieces)):
        left_at, left_rows = _place(piece, length, channels, chunks, Q, S, STATES_LEFT)
        right_at, right_rows = _place(piece, length, channels, chunks, Q, S, STATES_RIGHT)
        for start in range(0, channels, DEPTH):
            deep = start + tl.arange(0, DEPTH)
            a = _part(left + left_at, row, left_rows, deep, channels)
            b = _part(right + right_at, column, right_rows, deep, channels)
            if a.dtype != b.dtype:  # states of float16 are wider
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    _put(sums + group * HEIGHT * WIDTH, row, HEIGHT, column, WIDTH, total)
