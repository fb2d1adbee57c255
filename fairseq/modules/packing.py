"""Work left out: the real tokens of a batch as rows of one long sequence, and back; rows that nothing reads.

Norms, linear maps, dropout and channel mixers work row by row, so they give the same on (1, N, C) rows of real tokens
as on (B, T, C), without the work on padding. Only what looks from one token to another needs to know where sequences
begin and end. `declares` asks a part of a model what it can do, as far as its word can be trusted.

Legend: B batch, T tokens of the longest sequence, C channels, N real tokens of the batch, n those of one sequence, R
rows that are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a (B, T) batch are: the first ``lengths[b]`` (at least one) of every sequence.

    ``rows`` is (N,), their places in the flattened batch.
    """

    lengths: tuple[int, ...]
    tokens: int
    rows: Tensor

    @classmethod
    def of(cls, padding: Tensor, below: float) -> Packing | None:
        """The packing of ``padding`` (B, T; True = padding), or None when the batch had better stay as it is.

        It stays when more than the share ``below`` of it is real; when padding comes before real tokens, where
        positions would move, or a sequence has none; on other devices than the CPU, which would have to wait for the
        lengths, and in compiled graphs, whose shapes must not change; and with ``FAIRSEQ_NATIVE=0``.
        """
        if not _looks_at(padding):
            return None
        real = ~padding
        counts = real.sum(dim=1)
        if int(counts.min()) == 0 or int(counts.sum()) > below * padding.numel():
            return None
        if bool((real[:, 1:] & padding[:, :-1]).any()):
            return None
        return cls(tuple(counts.tolist()), padding.size(1), real.reshape(-1).nonzero().squeeze(1))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) to (1, N, ...)."""
        return x.flatten(0, 1).index_select(0, self.rows).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """(1, N, C) to (B, T, C), zero at padding."""
        return scatter_rows(x, self.rows, (len(self.lengths), self.tokens))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The sequences of ``x`` (1, N, ...), each (1, n, ...)."""
        return x.split(self.lengths, dim=1)


def read_rows(read: Tensor, below: float) -> Tensor | None:
    """Where ``read`` is True, in its flattened form (R,); None unless that is less than the share ``below`` of it.

    None also on other devices than the CPU, in compiled graphs, and with ``FAIRSEQ_NATIVE=0``, as for `Packing.of`.
    """
    if not _looks_at(read):
        return None
    rows = read.reshape(-1).nonzero().squeeze(1)
    return rows if len(rows) < below * read.numel() else None


def scatter_rows(x: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` (1, R, C) as (..., C) of leading ``shape``, zero outside the flat ``rows`` (R,)."""
    everywhere = x.new_zeros(math.prod(shape), x.size(-1)).index_copy(0, rows, x[0])
    return everywhere.unflatten(0, tuple(shape))


def _looks_at(mask: Tensor) -> bool:
    """Whether shapes may depend on what is in ``mask``."""
    if torch.compiler.is_compiling() or mask.device.type != "cpu" or not mask.numel():
        return False
    return os.environ.get("FAIRSEQ_NATIVE") != "0"


def declares(part: object, name: str, *methods: str) -> bool:
    """Whether the class attribute ``name`` of ``part`` is true of its ``methods``.

    It has to stand in the very class that defines the method: a subclass that defines it again, without saying so, knows
    nothing of what its parent can do.
    """
    for method in methods:
        owner = next(kind for kind in type(part).__mro__ if method in vars(kind))
        if method in vars(part) or not vars(owner).get(name, False):
            return False
    return True
