"""Attention whose scores get numbers by relative position, up to a reach: ``band_attention``.

Relative positions that depend on the query, on the key or on neither are lightweight convolutions inside the softmax
(Chang et al. 2021, ACL). Each is a table over offsets: small, where a bias of positions would be (B, H, T, T).
The computation is that of ``fairseq.ops.attention``, with the score term ``band``.

Legend: B sequences, H heads, T tokens, D head width, i query row, j key column, w reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq.ops.attention import attention, check_tensors
from fairseq.ops.packed_attention import packed
from fairseq.ops.score_terms import TERMS


def band_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
    fixed_table: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """``softmax(q k' / sqrt(D) + the sum of the tables' numbers) v``; gives (B, H, T, D), in memory (B, T, H, D).

    Column w + o of a table is for offset o; what lies further away than w has the number of the end. So a table whose
    ends are zeros acts within its reach only, and one whose ends are very negative hides all else. To have the tables'
    numbers alone, without products of queries and keys, give zeros for ``q``.

    Args:
        q, k, v: (B, H, T, D) of one floating-point type; sums are in float32 (float64 for float64).
        query_table: (B, H, T, 2w + 1): row i is for query i, offset j - i.
        key_table: (B, H, T, 2w + 1): row j is for key j, offset i - j, as seen from the key.
        fixed_table: (H, 2w + 1): offset j - i.
        key_padding_mask: (B, T) bool, True = padding. A sequence without any key gives zeros.
        dropout_p, seed: see ``fairseq.ops.alibi_attention``.
        lengths: of sequences that lie one after the other in B = 1, instead of a mask.

    Gradients reach q, k, v and all tables, with a memory that is linear in T where kernels are compiled.

    Raises:
        ValueError: shapes or types that do not fit, or no table.
    """
    check_tensors(q, k, v, key_padding_mask, dropout_p)
    _check_tables(q, query_table, key_table, fixed_table)
    parameters = band_parameters(q, with_fixed(q, query_table, fixed_table), key_table)
    if lengths is None:
        return attention(q, k, v, "band", parameters, key_padding_mask, dropout_p, seed)[0]
    if key_padding_mask is not None or q.size(0) != 1:
        raise ValueError("`lengths` are for sequences in one row (B = 1) without a `key_padding_mask`")
    return packed(q, k, v, lengths, "band", parameters, dropout_p, seed)


def band_scores(
    q: Tensor, query_table: Tensor | None = None, key_table: Tensor | None = None, fixed_table: Tensor | None = None
) -> Tensor:
    """What the tables add to the scores of ``q`` (B, H, T, D), as one tensor (B, H, T, T)."""
    _check_tables(q, query_table, key_table, fixed_table)
    parameters = band_parameters(q, with_fixed(q, query_table, fixed_table), key_table)
    return TERMS["band"].scores(parameters, q.size(2))


def with_fixed(q: Tensor, query: Tensor | None, fixed: Tensor | None) -> Tensor | None:
    """The query's table and the fixed one as one table (B, H, T, 2w + 1)."""
    if fixed is None:
        return query
    fixed = fixed[None, :, None].expand(q.size(0), -1, q.size(2), -1)
    return fixed if query is None else query + fixed


def band_parameters(q: Tensor, query: Tensor | None, key: Tensor | None) -> list[Tensor]:
    """Those of the score term ``band``."""
    return [_absent(q) if query is None else query, *_key_parts(q, key)]


def _absent(q: Tensor) -> Tensor:
    return q.new_empty(0)


def _key_parts(q: Tensor, table: Tensor | None) -> list[Tensor]:
    """Kernels want the two ends, which most queries use, as rows over the keys."""
    if table is None:
        return [_absent(q), _absent(q)]
    return [table[..., 1:-1], torch.stack([table[..., 0], table[..., -1]], dim=2)]


def _check_tables(q: Tensor, query: Tensor | None, key: Tensor | None, fixed: Tensor | None) -> None:
    given = {"query_table": query, "key_table": key, "fixed_table": fixed}
    columns = {x.shape[-1] for x in given.values() if x is not None and x.dim()}
    if len(columns) != 1 or min(columns) < 3 or min(columns) % 2 == 0:
        raise ValueError(
            f"tables must have 2w + 1 columns, one reach w of at least 1 for all of them, but have {sorted(columns)}"
        )
    for name, x in given.items():
        wanted = (*q.shape[1:2], *columns) if name == "fixed_table" else (*q.shape[:3], *columns)
        if x is not None and (x.shape != wanted or not x.is_floating_point()):
            raise ValueError(
                f"`{name}` must be floating-point of shape {wanted}, but is {x.dtype} of {tuple(x.shape)} instead"
            )
