"""The mixers of fairseq's encoders in plain PyTorch; see ``fairseq.portable.encoder``.

Legend: B batch, T tokens, C channels, H heads, D head width, w reach, N modes, Q positions of a chunk, M chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 64  # Q
HIDDEN = -10000.0  # the score of what lies outside ConvBERT's windows
CLIP = -1e-4  # the largest real part of a pole


def activate(x: Tensor, name: str) -> Tensor:
    if name in ("gelu_fast", "gelu_accurate"):
        return F.gelu(x, approximate="tanh")
    functions: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}
    return x if name == "linear" else functions[name](x)


# ---------------------------------------------------------------------------------------------------------- attention


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head (Press et al. 2022): powers of 2^(-8/H), those between for an H that is no power of two."""
    c = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (k + 1) / c) for k in range(c)]
    return slopes if c == heads else slopes + alibi_slopes(2 * c)[::2][: heads - c]


def score_bias(config: Any, padding: Tensor, dtype: torch.dtype) -> Tensor:
    """What every layer adds to its scores: (B, 1 or H, 1 or T, T), ALiBi if the model has it and the lowest number at padding."""
    bias = torch.zeros((1, 1, 1, 1), dtype=dtype, device=padding.device)
    if config.attention_bias != "none":
        at = torch.arange(padding.size(1), dtype=torch.float32, device=padding.device)
        offset = at - at.unsqueeze(1)
        distance = offset.abs()
        if config.attention_bias == "alibi_asymmetrical":
            distance = distance - 0.5 * (offset > 0)
        slopes = torch.tensor(alibi_slopes(config.num_attention_heads), device=padding.device)
        bias = (-distance * slopes.view(-1, 1, 1)).to(dtype)[None]
    lowest = torch.finfo(dtype).min
    return torch.where(padding[:, None, None, :], lowest, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float, scale: float | None = None) -> Tensor:
    """(B, H, T, D) each -> (B, T, H D)."""
    scores = q @ k.transpose(-1, -2) * (q.size(-1) ** -0.5 if scale is None else scale) + bias
    weights = F.dropout(scores.softmax(-1), dropout, dropout > 0)
    return (weights @ v).transpose(1, 2).flatten(2)


def in_heads(x: Tensor, width: int) -> Tensor:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)


class SelfAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.linear_bias
        self.head_dim = width // config.num_attention_heads
        self.dropout = config.attention_dropout
        self.scale = config.token_mixer["scale"]
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (in_heads(part(x), self.head_dim) for part in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, bias, self.dropout if self.training else 0.0, self.scale))


# ------------------------------------------------------------------------------------------- attention with convolutions


def banded(table: Tensor) -> Tensor:
    """(B, H, T, 2w + 1), of row i for offset j - i, as (B, H, T, T); offsets beyond w count as w."""
    reach = table.size(-1) // 2
    at = torch.arange(table.size(2), device=table.device)
    offset = (at - at.unsqueeze(1)).clamp(-reach, reach) + reach
    return table.gather(-1, offset.expand(table.size(0), table.size(1), -1, -1))


class SequenceConv(nn.Conv1d):
    """Cross-correlation over 2w + 1 tokens, with zeros at padding: (B, T, C_in) -> (B, T, C_out)."""

    def __init__(self, in_dim: int, out_dim: int, reach: int, groups: int, bias: bool) -> None:
        super().__init__(in_dim, out_dim, 2 * reach + 1, padding=reach, groups=groups, bias=bias)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.masked_fill(padding.unsqueeze(-1), 0.0).transpose(1, 2)).transpose(1, 2)


class Projection(nn.Module):
    """Queries, keys or values by a convolution: ``kind`` convolution or depthwise, ``mixed`` in half of the heads."""

    def __init__(self, dim: int, out_dim: int, parts: dict[str, Any], activation: str, bias: bool) -> None:
        super().__init__()
        depthwise, half = parts["kind"] == "depthwise", out_dim // 2 if parts["mixed"] else out_dim
        width, groups = (out_dim, dim) if depthwise else (half, parts["groups"])
        self.activation = activation if depthwise and parts["activation"] else "linear"
        self.conv = SequenceConv(dim, width, parts["reach"], groups, bias)
        self.pointwise = nn.Linear(width, half, bias=bias) if depthwise else None
        self.linear = nn.Linear(dim, out_dim - half, bias=bias) if parts["mixed"] else None

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = activate(self.conv(x, padding), self.activation)
        y = y if self.pointwise is None else self.pointwise(y)
        return y if self.linear is None else torch.cat([y, self.linear(x)], dim=-1)


class ConvAttention(nn.Module):
    """Scores of content and of tables by relative position, and a depthwise convolution of values (Chang et al. 2021)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        kernel, dim, bias = config.token_mixer["kernel"], config.hidden_size, config.linear_bias
        heads, self.head_dim = config.num_attention_heads, config.token_mixer["head_dim"]
        self.content, self.dropout = kernel["content"], config.attention_dropout
        inner, offsets = heads * self.head_dim, 2 * (kernel["reach"] or 0) + 1

        def projection(wanted: bool, parts: dict[str, Any]) -> nn.Module | None:
            if not wanted or parts["kind"] == "none":
                return None
            if parts["kind"] == "linear":
                return nn.Linear(dim, inner, bias=bias)
            return Projection(dim, inner, parts, config.hidden_act, bias)

        self.has_keys, self.has_queries = self.content or kernel["key"], self.content or kernel["query"]
        self.k_proj = projection(self.has_keys, config.token_mixer["query_key"])
        self.v_proj = projection(True, config.token_mixer["value"])
        self.q_proj = projection(self.has_queries, config.token_mixer["query_key"])
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.fixed_table = nn.Parameter(torch.zeros(heads, offsets)) if kernel["fixed"] else None
        self.query_table = nn.Parameter(torch.zeros(self.head_dim, offsets)) if kernel["query"] else None
        self.key_table = nn.Parameter(torch.zeros(self.head_dim, offsets)) if kernel["key"] else None
        depthwise = kernel["depthwise"]
        self.depthwise = SequenceConv(inner, inner, kernel["reach"] or 0, inner, bias) if depthwise != "none" else None
        self.depthwise_scale = nn.Parameter(torch.ones(heads)) if depthwise == "scaled" else None

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
        values = self._project(self.v_proj, x, padding)
        v = in_heads(values, self.head_dim)
        q = in_heads(self._project(self.q_proj, x, padding), self.head_dim) if self.has_queries else torch.zeros_like(v)
        k = in_heads(self._project(self.k_proj, x, padding), self.head_dim) if self.has_keys else torch.zeros_like(v)
        bias = self._with_tables(q, k, bias)
        if not self.content:
            q = k = torch.zeros_like(v)
        mixed = attend(q, k, v, bias, self.dropout if self.training else 0.0)
        if self.depthwise is not None:
            near = self.depthwise(values, padding)
            if self.depthwise_scale is not None:
                near = (near.unflatten(-1, (-1, self.head_dim)) * self.depthwise_scale[:, None]).flatten(2)
            mixed = mixed + near
        return self.out_proj(mixed)

    @staticmethod
    def _project(projection: nn.Module | None, x: Tensor, padding: Tensor) -> Tensor:
        if projection is None:
            return x
        return projection(x, padding) if isinstance(projection, Projection) else projection(x)

    def _with_tables(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        scale = self.head_dim**-0.5
        if self.query_table is not None:
            bias = bias + banded(q @ (self.query_table * scale))
        if self.key_table is not None:
            bias = bias + banded(k @ (self.key_table * scale)).transpose(-1, -2)
        if self.fixed_table is not None:
            length = q.size(2)
            bias = bias + banded(self.fixed_table[None, :, None].expand(-1, -1, length, -1))
        return bias


class ConvBertAttention(nn.Module):
    """Half of the heads attend, the others are convolutions whose weights each token makes (Jiang et al. 2020)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        kernel, dim, bias = config.token_mixer["kernel"], config.hidden_size, config.linear_bias
        self.heads, self.head_dim = config.num_attention_heads, config.token_mixer["head_dim"]
        self.dropout, self.at_query, reach = config.attention_dropout, kernel["convbert"] == "query", kernel["reach"]
        inner = self.heads * self.head_dim
        self.k_proj = nn.Linear(dim, inner // 2, bias=bias)
        self.v_proj = nn.Linear(dim, inner, bias=bias)
        self.q_proj = nn.Linear(dim, inner // 2, bias=bias)
        self.out_proj = nn.Linear(inner, dim, bias=bias)
        self.key_depthwise = SequenceConv(dim, dim, reach, dim, bias)
        self.key_pointwise = nn.Linear(dim, inner // 2, bias=bias)
        self.weight_proj = nn.Linear(inner // 2, self.heads // 2 * (2 * reach + 1), bias=bias)

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
        half, dropout, queries = self.heads // 2, self.dropout if self.training else 0.0, self.q_proj(x)
        q, k, v = (in_heads(part, self.head_dim) for part in (queries, self.k_proj(x), self.v_proj(x)))
        far = attend(q, k, v[:, :half], bias, dropout)
        weights = self.weight_proj(self.key_pointwise(self.key_depthwise(x, padding)) * queries)
        weights = weights.unflatten(-1, (half, -1)).transpose(1, 2)  # (B, H/2, T, 2w + 1)
        if self.at_query:
            scores = banded(F.pad(weights, (1, 1), value=HIDDEN))
        else:
            scores = banded(F.pad(weights.flip(-1), (1, 1), value=HIDDEN)).transpose(-1, -2)
        nothing = torch.zeros_like(q)
        near = attend(nothing, nothing, v[:, half:], bias + scores, dropout)
        return self.out_proj(torch.cat([far, near], dim=-1))


# --------------------------------------------------------------------------------------------------------------- BiGS


class StateSpace(nn.Module):
    """A long convolution whose kernel is a sum of N damped oscillations, in one direction (Wang et al. 2022): (B, T, C) each."""

    def __init__(self, modes: int) -> None:
        super().__init__()
        self.A_re = nn.Parameter(torch.full((modes,), -0.5))
        self.A_im = nn.Parameter(torch.arange(modes, dtype=torch.float32))
        self.C = nn.Parameter(torch.ones(modes, 2))
        self.D = nn.Parameter(torch.ones(1))
        self.log_step = nn.Parameter(torch.full((1,), -2.0))

    def powers(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of exp(times * step * pole): (len(times), N)."""
        step = self.log_step.double().exp()
        decay = torch.exp(times[:, None] * (step * self.A_re.double().clamp(max=CLIP)))
        angle = times[:, None] * (step * self.A_im.double())
        return decay * torch.cos(angle), decay * torch.sin(angle)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of C (exp(step pole) - 1) / pole, (N,); see ``fairseq.ops.ssm``."""
        re, im = self.A_re.double().clamp(max=CLIP), self.A_im.double()
        step = self.log_step.double().exp()
        grown, b = torch.expm1(step * re), step * im
        x, y = grown * torch.cos(b) - 2 * torch.sin(b / 2) ** 2, (grown + 1) * torch.sin(b)
        square = re * re + im * im
        x, y = (x * re + y * im) / square, (y * re - x * im) / square  # divided by the pole
        c, d = self.C[:, 0].double(), self.C[:, 1].double()
        return c * x - d * y, c * y + d * x

    def forward(self, u: Tensor, reverse: bool) -> Tensor:
        """A product with a small matrix within chunks of Q positions; between chunks, states and what is left of them."""
        length, wide = u.size(1), torch.promote_types(u.dtype, torch.float32)
        x = u.to(wide)
        count = (length + 2 * CHUNK - 1) // CHUNK  # M: never one, which a graph for any length could not be
        x = F.pad(x.flip(1) if reverse else x, (0, 0, 0, 2 * CHUNK))
        x = x.index_select(1, torch.arange(count * CHUNK, device=u.device)).unflatten(1, (count, CHUNK))
        times = torch.arange(CHUNK + 1, dtype=torch.float64, device=u.device)
        (re, im), (weight, turn) = self.powers(times), self.weights()
        kernel = (re[:-1] * weight - im[:-1] * turn).sum(1)
        lag = times[:-1, None] - times[:-1]
        within = torch.where(lag >= 0, kernel[lag.clamp(min=0).long()], 0.0) + torch.diag(self.D.double().expand(CHUNK))
        into = torch.cat([re[:-1].flip(0).T, im[:-1].flip(0).T]).to(wide)  # (2N, Q): inputs to state
        out = torch.cat([re[1:] * weight - im[1:] * turn, -(re[1:] * turn + im[1:] * weight)], dim=1).to(
            wide
        )  # (Q, 2N)
        y = within.to(wide) @ x + out @ self._carried(into @ x, wide)
        y = y.flatten(1, 2).index_select(1, torch.arange(length, device=u.device))  # a slice would depend on the length
        return (y.flip(1) if reverse else y).to(u.dtype)

    def _carried(self, added: Tensor, wide: torch.dtype) -> Tensor:
        """What chunks add to the state (B, M, 2N, C), to the state before each chunk: all earlier ones, turned and damped."""
        number = torch.arange(added.size(1), dtype=torch.float64, device=added.device)
        age = number[:, None] - number - 1  # of what chunk m' added, when chunk m begins: (M, M)
        re, im = self.powers((age.clamp(min=0) * CHUNK).flatten())
        past = (age >= 0).flatten()[:, None]
        count = added.size(1)
        re, im = ((part * past).to(wide).reshape(count, count, -1).permute(2, 0, 1) for part in (re, im))  # (N, M, M)
        a, b = (part.permute(2, 1, 0, 3).flatten(2) for part in added.chunk(2, dim=2))  # (N, M, B C)
        real, imaginary = re @ a - im @ b, re @ b + im @ a
        states = torch.cat([real, imaginary])  # (2N, M, B C)
        return states.unflatten(2, (added.size(0), added.size(3))).permute(2, 1, 0, 3)


class BiGS(nn.Module):
    """Two gated state-space convolutions in place of attention and of the feed-forward part."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, inner, options = config.hidden_size, config.intermediate_size, config.token_mixer
        self.activation, self.leak = options["activation"], options["padding"] == "leak"
        self.value_proj = nn.Linear(dim, inner)
        self.forward_proj = nn.Linear(dim, dim)
        self.backward_proj = nn.Linear(dim, dim)
        self.forward_ssm = StateSpace(options["num_ssm"])
        self.backward_ssm = StateSpace(options["num_ssm"])
        self.forward_out_proj = nn.Linear(dim, dim)
        self.backward_out_proj = nn.Linear(dim, dim)
        self.gate_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, x: Tensor, padding: Tensor, bias: Tensor) -> Tensor:
        u, v = (activate(part(x), self.activation) for part in (self.forward_proj, self.backward_proj))
        if not self.leak:  # padding enters no state
            u, v = (part.masked_fill(padding.unsqueeze(-1), 0.0) for part in (u, v))
        before, after = self.forward_ssm(u, False), self.backward_ssm(v, True)
        gate = activate(self.gate_proj(self.forward_out_proj(before) * self.backward_out_proj(after)), self.activation)
        return self.out_proj(gate * activate(self.value_proj(x), self.activation))


# ------------------------------------------------------------------------------------------------------ channel mixers


class FastFeedForward(nn.Module):
    """Each token uses the nodes on one path through every binary tree (Belcak and Wattenhofer 2023)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        dim, self.depth, self.trees = config.hidden_size, config.channel_mixer["depth"], config.channel_mixer["trees"]
        self.activation = config.hidden_act
        self.size = 2 ** (self.depth + 1) - 1
        self.weight_in = nn.Parameter(torch.zeros(self.trees * self.size, dim))
        self.bias_in = nn.Parameter(torch.zeros(self.trees * self.size))
        self.weight_out = nn.Parameter(torch.zeros(self.trees * self.size, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for tree in range(self.trees):
            node = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
            for _ in range(self.depth + 1):
                at = node + tree * self.size
                logit = (x * self.weight_in[at]).sum(-1) + self.bias_in[at]
                y = y + activate(logit, self.activation).unsqueeze(-1) * self.weight_out[at]
                node = 2 * node + 1 + (logit > 0).long()
        return y


MIXERS = {"self_attention": SelfAttention, "bigs": BiGS}


def token_mixer(config: Any) -> nn.Module:
    name = config.token_mixer["name"]
    if name == "conv_attention":
        return (ConvAttention if config.token_mixer["kernel"]["convbert"] == "none" else ConvBertAttention)(config)
    return MIXERS[name](config)
