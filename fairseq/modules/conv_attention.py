"""Attention with convolutions (Chang et al. 2021, "Convolutions and Self-Attention", ACL), ConvBERT's among them.

    s[h, i, j] = q_i k_j / sqrt D                            content
               + fixed[h, j - i]                             a fixed lightweight convolution
               + q_i query[:, j - i] / sqrt D                a dynamic one, made by the query (relative embeddings)
               + k_j key[:, i - j] / sqrt D                  a dynamic one, made by the key
    o[h, i]    = sum_j softmax_j(s) v_j + depthwise(v)[h, i]

Offsets beyond the reach w count as w; each part may be there or not, and q, k and v may themselves be convolutions of x.

Legend: B batch, T tokens, C channels, H heads, D head width, A = H D, w reach, N tokens of a packed batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.modules.attention_backends import Bias, attend, check_backend, finds_starts, queries_like
from fairseq.modules.conv_grammar import Kernel, Projection, check_kernel, read_options
from fairseq.modules.conv_projections import SequenceConv, build_projection, project
from fairseq.modules.feed_forward import Linear, get_activation_fn
from fairseq.modules.score_tables import Tables, attend_with_tables, tables_find_starts
from fairseq.modules.slots import EncoderContext, EncoderShape
from fairseq.registry import TOKEN_MIXERS

LINEAR = Projection()
HIDDEN = -10000.0  # the score of what lies outside ConvBERT's windows


class ConvAttention(nn.Module):
    """x (B, T, C) -> (B, T, C); packed, (1, N, C).

    Queries are there where the content or the query's table wants them, keys likewise. Tables (D, 2w + 1) of queries and
    keys are shared by the heads and begin uniform within 1/sqrt(2w + 1), that of each head (H, 2w + 1) at zero.
    """

    packs = True
    selects = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel: Kernel,
        *,
        query_key: Projection = LINEAR,
        value: Projection = LINEAR,
        head_dim: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        backend: str = "auto",
        attention_bias: Bias | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ConfigError(
                f"the encoder width must be a multiple of the number of attention heads, but {dim} is not one of "
                f"{num_heads}: change one, or set model.conv_attention_head_dim"
            )
        self.kernel = check_kernel(kernel)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.dropout = dropout
        self.backend = check_backend(backend)
        self.attention_bias = attention_bias
        inner = num_heads * self.head_dim

        def projection(wanted: bool, kind: Projection) -> nn.Module | None:
            return build_projection(dim, inner, kind, get_activation_fn(activation), bias) if wanted else None

        self.has_keys, self.has_queries = kernel.content or kernel.key, kernel.content or kernel.query
        self.k_proj = projection(self.has_keys, query_key)
        self.v_proj = projection(True, value)
        self.q_proj = projection(self.has_queries, query_key)
        self.out_proj = Linear(inner, dim, bias=bias)
        offsets = 2 * (kernel.reach or 0) + 1
        self.fixed_table = nn.Parameter(torch.zeros(num_heads, offsets)) if kernel.fixed else None
        self.query_table = _drawn_table(self.head_dim, offsets) if kernel.query else None
        self.key_table = _drawn_table(self.head_dim, offsets) if kernel.key else None
        self.depthwise: SequenceConv | None = None
        if kernel.depthwise != "none":
            self.depthwise = SequenceConv(inner, inner, kernel.reach or 0, inner, bias)
        self.depthwise_scale = nn.Parameter(torch.ones(num_heads)) if kernel.depthwise == "scaled" else None

    def finds_starts(self, x: Tensor) -> bool:
        """Whether the backend for tokens like ``x`` (B, T, C) takes `EncoderContext.starts`."""
        q = queries_like(x, self.num_heads, self.head_dim)
        if self.kernel.has_tables:
            return tables_find_starts(q, self.attention_bias, self.backend)
        return finds_starts(q, self.attention_bias, self.dropout if self.training else 0.0, self.backend)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        values = project(self.v_proj, x, context)
        q = self._heads(project(self.q_proj, x, context)) if self.has_queries else None
        k = self._heads(project(self.k_proj, x, context)) if self.has_keys else None
        mixed = self._attend(q, k, self._heads(values), context).transpose(1, 2)  # (B, T, H, D)
        if self.depthwise is not None:
            near = self.depthwise(values, context).unflatten(-1, (self.num_heads, self.head_dim))
            mixed = mixed + (near if self.depthwise_scale is None else near * self.depthwise_scale[:, None])
        return self.out_proj(context.keep(mixed.flatten(2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, A) -> (B, H, T, D)

    def _attend(self, q: Tensor | None, k: Tensor | None, v: Tensor, context: EncoderContext) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if not self.kernel.has_tables:
            assert q is not None and k is not None
            return attend_in_context(q, k, v, context, self.attention_bias, dropout, self.backend)
        scale = self.head_dim**-0.5
        tables = Tables(
            None if q is None or self.query_table is None else q @ (self.query_table * scale),
            None if k is None or self.key_table is None else k @ (self.key_table * scale),
            self.fixed_table,
            self.attention_bias,
        )
        q, k = (q, k) if self.kernel.content else (None, None)
        return attend_with_tables(q, k, v, tables, context, dropout=dropout, backend=self.backend)


def _drawn_table(dim: int, offsets: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(dim, offsets).uniform_(-(offsets**-0.5), offsets**-0.5))


def attend_in_context(
    q: Tensor, k: Tensor, v: Tensor, context: EncoderContext, bias: Bias | None, dropout: float, backend: str
) -> Tensor:
    """Attention without tables, by any backend."""
    return attend(
        q,
        k,
        v,
        bias=bias,
        padding=context.padding,
        lengths=context.lengths,
        dropout=dropout,
        backend=backend,
        cache=context.cache,
        token_counts=context.token_counts,
        starts=context.starts,
    )


class ConvBertAttention(nn.Module):
    """Half of the heads attend; the other half are convolutions whose weights each token makes (Jiang et al. 2020).

    For those, a linear map of the products of queries with a depthwise-separable convolution of x gives 2w + 1 scores a
    token, of the offsets j - i within the reach; all else is hidden. The token that makes them is the key j, as in the
    original, or the query i (``at_query``), as published.
    """

    packs = True
    selects = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reach: int,
        *,
        at_query: bool = False,
        head_dim: int | None = None,
        dropout: float = 0.0,
        backend: str = "auto",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_heads % 2 or (head_dim is None and dim % num_heads):
            raise ConfigError(
                f"ConvBERT needs an even number of attention heads that divides the encoder width, but has {num_heads} heads "
                f"and the width {dim}"
            )
        self.num_heads, self.reach, self.at_query = num_heads, reach, at_query
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.dropout = dropout
        self.backend = check_backend(backend)
        inner = num_heads * self.head_dim
        half = inner // 2
        self.k_proj = Linear(dim, half, bias=bias)
        self.v_proj = Linear(dim, inner, bias=bias)
        self.q_proj = Linear(dim, half, bias=bias)
        self.out_proj = Linear(inner, dim, bias=bias)
        self.key_depthwise = SequenceConv(dim, dim, reach, dim, bias)
        self.key_pointwise = Linear(dim, half, bias=bias)
        self.weight_proj = Linear(half, num_heads // 2 * (2 * reach + 1), bias=bias)

    def finds_starts(self, x: Tensor) -> bool:
        """Whether the backends for tokens like ``x`` (B, T, C) take `EncoderContext.starts`."""
        q = queries_like(x, self.num_heads // 2, self.head_dim)
        dropout = self.dropout if self.training else 0.0
        return tables_find_starts(q, None, self.backend) and finds_starts(q, None, dropout, self.backend)

    def forward(self, x: Tensor, context: EncoderContext) -> Tensor:
        half, dropout = self.num_heads // 2, self.dropout if self.training else 0.0
        queries = self.q_proj(x)
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (queries, self.k_proj(x), self.v_proj(x))
        )
        far = attend_in_context(q, k, v[:, :half], context, None, dropout, self.backend)
        tables = self._tables(x, queries, context)
        near = attend_with_tables(None, None, v[:, half:], tables, context, dropout=dropout, backend=self.backend)
        mixed = torch.cat([far, near], dim=1).transpose(1, 2).flatten(2)
        return self.out_proj(context.keep(mixed))

    def _tables(self, x: Tensor, queries: Tensor, context: EncoderContext) -> Tables:
        span = self.key_pointwise(self.key_depthwise(x, context)) * queries
        weights = self.weight_proj(span).unflatten(-1, (self.num_heads // 2, -1)).transpose(1, 2)  # (B, H/2, T, 2w + 1)
        if self.at_query:
            return Tables(query=F.pad(weights, (1, 1), value=HIDDEN))
        return Tables(key=F.pad(weights.flip(-1), (1, 1), value=HIDDEN))


@TOKEN_MIXERS.register("conv_attention")
def conv_attention(
    shape: EncoderShape, attention_bias: Bias | None = None, **options: Any
) -> ConvAttention | ConvBertAttention:
    """``options``: see ``fairseq.modules.conv_grammar.read_options``."""
    parts = read_options(**options)
    same: dict[str, Any] = {
        "head_dim": parts.head_dim,
        "dropout": shape.attention_dropout,
        "backend": shape.attention_backend,
        "bias": shape.bias,
    }
    if parts.kernel.convbert == "none":
        return ConvAttention(
            shape.dim,
            shape.heads,
            parts.kernel,
            query_key=parts.query_key,
            value=parts.value,
            activation=shape.activation,
            attention_bias=attention_bias,
            **same,
        )
    if attention_bias is not None:
        raise ConfigError(
            "half of the heads of model.conv_attention_kernel=convbert have no room for an attention bias: leave out "
            "model.attention_bias"
        )
    assert parts.kernel.reach is not None
    return ConvBertAttention(
        shape.dim, shape.heads, parts.kernel.reach, at_query=parts.kernel.convbert == "query", **same
    )
