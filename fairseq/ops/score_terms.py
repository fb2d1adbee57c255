"""What attention adds to the scaled products of queries and keys before the softmax: terms by name, in plain torch.

A term is made of a list of tensors. Compiled kernels have the first three terms in ``fairseq/csrc/common/score_terms.h``.

Legend: B sequences, H heads, T tokens, i query row, j key column, w reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ScoreTerm(Protocol):
    @property
    def trained(self) -> bool:
        """Whether parameters have gradients."""

    def scores(self, parameters: list[Tensor], tokens: int) -> Tensor:
        """What is added: (1 or B, H, T, T), of the type of the parameters."""

    def gradients(self, parameters: list[Tensor], dscores: Tensor) -> list[Tensor]:
        """Of the parameters, for the gradient (B, H, T, T) of ``scores``. Only asked when ``trained``."""

    def part(self, parameters: list[Tensor], start: int, length: int) -> list[Tensor]:
        """Views: the parameters for tokens ``start`` to ``start + length``."""


def alibi_bias(slopes: Tensor, tokens: int, asymmetrical: bool) -> Tensor:
    """(H, T, T): minus slope times distance."""
    at = torch.arange(tokens, dtype=slopes.dtype, device=slopes.device)
    offset = at - at[:, None]
    distance = torch.where(offset > 0, offset - 0.5 * asymmetrical, -offset)
    return -slopes[:, None, None] * distance


@dataclass(frozen=True)
class Alibi:
    """Parameters: slopes (H,)."""

    asymmetrical: bool
    trained: bool = False

    def scores(self, parameters: list[Tensor], tokens: int) -> Tensor:
        return alibi_bias(parameters[0], tokens, self.asymmetrical)[None]

    def gradients(self, parameters: list[Tensor], dscores: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def part(self, parameters: list[Tensor], start: int, length: int) -> list[Tensor]:
        return parameters


@dataclass(frozen=True)
class Band:
    """``query[i, clamp(j - i, -w, w) + w] + key[j, clamp(i - j, -w, w) + w]``, each table with its own view of the offset.

    Parameters: the query's table (B, H, T, 2w + 1), and the key's in two pieces: its columns but the first and the last
    (B, H, T, 2w - 1), and these two (B, H, 2, T). An absent table is (0,), an absent key's table two of these.
    """

    trained: bool = True

    def scores(self, parameters: list[Tensor], tokens: int) -> Tensor:
        query, inside, ends = parameters
        found = [torch.take_along_dim(query, self._columns(query, tokens), -1)] if query.dim() > 1 else []
        if inside.dim() > 1:
            key = torch.cat([ends[..., 0, :, None], inside, ends[..., 1, :, None]], dim=-1)
            found.append(torch.take_along_dim(key, self._columns(key, tokens), -1).mT)
        return found[0] + found[1] if len(found) > 1 else found[0]

    def gradients(self, parameters: list[Tensor], dscores: Tensor) -> list[Tensor]:
        query, inside, ends = parameters
        dquery, dinside, dends = query.new_zeros(0), query.new_zeros(0), query.new_zeros(0)
        if query.dim() > 1:
            dquery = self._collected(dscores, query.size(-1))
        if inside.dim() > 1:
            dkey = self._collected(dscores.mT, inside.size(-1) + 2)
            dinside, dends = dkey[..., 1:-1], dkey[..., :: dkey.size(-1) - 1].mT
        return [x.contiguous() for x in (dquery, dinside, dends)]

    def part(self, parameters: list[Tensor], start: int, length: int) -> list[Tensor]:
        dims = (2, 2, 3)
        return [x if x.dim() == 1 else x.narrow(d, start, length) for x, d in zip(parameters, dims, strict=True)]

    def _columns(self, table: Tensor, tokens: int) -> Tensor:
        """(1, 1, T, T): the column of the table of the row's token for the other token."""
        reach = table.size(-1) // 2
        at = torch.arange(tokens, device=table.device)
        return ((at - at[:, None]).clamp(-reach, reach) + reach)[None, None]

    def _collected(self, dscores: Tensor, columns: int) -> Tensor:
        to = dscores.new_zeros(*dscores.shape[:-1], columns)
        return to.scatter_add(-1, self._columns(to, dscores.size(-1)).expand_as(dscores), dscores)


@dataclass(frozen=True)
class BandAlibi:
    """Both together; the slopes come last. Kernels in Triton alone have it (``fairseq.ops.flash_attention``)."""

    alibi: Alibi
    band: Band = Band()
    trained: bool = True

    def scores(self, parameters: list[Tensor], tokens: int) -> Tensor:
        *tables, slopes = parameters
        return self.band.scores(tables, tokens) + self.alibi.scores([slopes], tokens)

    def gradients(self, parameters: list[Tensor], dscores: Tensor) -> list[Tensor]:
        *tables, slopes = parameters
        return [*self.band.gradients(tables, dscores), slopes.new_zeros(0)]

    def part(self, parameters: list[Tensor], start: int, length: int) -> list[Tensor]:
        *tables, slopes = parameters
        return [*self.band.part(tables, start, length), slopes]


TERMS: dict[str, ScoreTerm] = {
    "alibi": Alibi(asymmetrical=False),
    "alibi_asymmetrical": Alibi(asymmetrical=True),
    "band": Band(),
    "band_alibi": BandAlibi(Alibi(asymmetrical=False)),
    "band_alibi_asymmetrical": BandAlibi(Alibi(asymmetrical=True)),
}
