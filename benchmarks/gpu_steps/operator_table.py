"""What ``operators.py`` checks: name -> (inputs, function, types).

``inputs(generator)`` gives float32 tensors, which are rounded to the type that is checked, and others. A name that begins with
``_`` keeps its type; with that or ``=`` it gets no gradient. Functions put what they need beside their inputs on the device
of these, and draw no random numbers: a seed is given. With ``_plain`` among its inputs a function computes what is right, or
usual, by the plainest means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairseq.modules.attention_backends import BACKENDS, attend
from fairseq.modules.attention_bias import ALiBi, alibi_slopes
from fairseq.ops import adam, fast_feed_forward, residual
from fairseq.ops.alibi_attention import alibi_attention
from fairseq.ops.band_attention import band_attention, with_fixed
from fairseq.ops.flash_attention import flash_attention
from fairseq.ops.linear import linear
from fairseq.ops.linear_cross_entropy import linear_cross_entropy
from fairseq.ops.packed_attention import packed_attention
from fairseq.ops.ssm import SSM, ssm_conv
from gpu_steps.setting import Setting

Inputs = dict[str, Tensor]
Entry = tuple[Callable[[torch.Generator], Inputs], Callable[[Inputs], "list[Tensor]"], tuple[torch.dtype, ...]]
ALL = (torch.float32, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
SEED = 1234567890123
HEADS = 4
COVERED = (
    "alibi_attention", "attention_", "packed_attention", "flash_attention", "dropout_add", "cross_entropy_rows_",
    "linear", "low_precision_adam_", "block_norms", "fast_feed_forward", "fff_", "ssm_chunks",
)  # fmt: skip


def table(setting: Setting) -> dict[str, Entry]:
    tokens, width = setting.size(300, 24), setting.size(64, 16)
    entries: dict[str, Entry] = {}
    qkv = functools.partial(_qkv, tokens=tokens, width=width)
    for dropout in (0.0, 0.1):
        for bias, padded in ((True, True), (True, False), (False, True)):
            name = f"alibi_attention{'' if bias else ' without bias'}{', padding' * padded}, dropout {dropout}"
            call = functools.partial(_alibi, bias=bias, padded=padded, dropout=dropout)
            entries[name] = (qkv, call, ALL)
        bands = functools.partial(_banded, tokens=tokens, width=width)
        entries[f"band_attention, padding, dropout {dropout}"] = (bands, functools.partial(_band, dropout=dropout), ALL)
        packed = functools.partial(_packed, lengths=(tokens // 2, 1, tokens - tokens // 2 - 1), dropout=dropout)
        one = functools.partial(_qkv, tokens=tokens, width=width, sequences=1)
        entries[f"packed_attention, dropout {dropout}"] = (one, packed, ALL)
        for packed_rows in (False, True):
            call = functools.partial(_flash, packed_rows=packed_rows, dropout=dropout)
            name = f"flash_attention, {'packed' if packed_rows else 'padding'}, dropout {dropout}"
            types = (torch.float32,) if setting.tiny else ALL  # the interpreter of Triton is slow, and wrong in bf16
            entries[name] = (one if packed_rows else qkv, call, types)
            if not packed_rows:
                entries[f"flash_attention, tables, padding, dropout {dropout}"] = (bands, call, types)
    for backend in BACKENDS:
        for bias in (True, False):
            call = functools.partial(_attend, backend=backend, bias=bias)
            name = f"backend {backend}{', ALiBi' if bias else ''}, padding"
            # flex compiles for many seconds each time, and the interpreter of Triton is wrong in bf16.
            unsafe = setting.tiny and backend == "triton"
            types = (torch.bfloat16,) if backend == "flex" else (torch.float32, torch.float16) if unsafe else ALL
            entries[name] = (qkv, call, types)
    rows, channels = setting.size(400, 20), setting.size(768, 32)
    entries["dropout_add"] = (functools.partial(_rows, rows=rows, channels=channels), _dropout_add, ALL)
    entries["dropout_add_layer_norm"] = (functools.partial(_rows, rows=rows, channels=channels), _norm, ALL)
    vocabulary = setting.size(5003, 101)
    loss = functools.partial(_head, rows=rows, channels=channels, vocabulary=vocabulary)
    entries["linear_cross_entropy"] = (loss, _loss, ALL)
    entries["linear"] = (functools.partial(_maps, rows=rows, channels=channels), _linear, ALL)
    for depth, trees in ((6, 2), (0, 1000), (1, 700)):  # walked, and through products
        few = setting.size(trees, min(trees, 20))
        nodes = functools.partial(_trees, rows=rows, channels=channels, depth=depth, trees=few)
        call = functools.partial(_feed_forward, depth=depth, trees=few)
        entries[f"fast_feed_forward, {trees} trees of depth {depth}"] = (nodes, call, ALL)
    for method in ("chunks", "fft"):
        modes = functools.partial(_modes, tokens=tokens, channels=channels)
        entries[f"ssm_conv by {method}, padding"] = (modes, functools.partial(_convolve, method=method), ALL)
    entries["low_precision_adam_"] = (functools.partial(_weights, size=rows * channels + 3), _adam, HALF)
    entries["block_norms"] = (functools.partial(_weights, size=rows * channels + 3), _norms, HALF)
    return entries


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _qkv(generator: torch.Generator, tokens: int, width: int, sequences: int = 2) -> Inputs:
    return {name: _normal(generator, sequences, HEADS, tokens, width) for name in "qkv"}


def _slopes(q: Tensor, bias: bool) -> Tensor:
    slopes = torch.tensor(alibi_slopes(HEADS), dtype=torch.float32, device=q.device)
    return (slopes if bias else torch.zeros_like(slopes)).to(torch.promote_types(q.dtype, torch.float32))


def _padding(q: Tensor) -> Tensor:
    """(B, T): the last fifth of each sequence but the first."""
    at = torch.arange(q.size(2), device=q.device) >= q.size(2) * 4 // 5
    return at & (torch.arange(q.size(0), device=q.device) > 0)[:, None]


def _alibi(x: Inputs, bias: bool, padded: bool, dropout: float) -> list[Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    return [alibi_attention(q, k, v, _slopes(q, bias), True, _padding(q) if padded else None, dropout, SEED)]


def _packed(x: Inputs, lengths: tuple[int, ...], dropout: float) -> list[Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    return [packed_attention(q, k, v, lengths, _slopes(q, True), True, dropout, SEED)]


def _banded(generator: torch.Generator, tokens: int, width: int, reach: int = 5) -> Inputs:
    tables = {name: _normal(generator, 2, HEADS, tokens, 2 * reach + 1) for name in ("by_query", "by_key")}
    return {**_qkv(generator, tokens, width), **tables, "fixed": _normal(generator, HEADS, 2 * reach + 1)}


def _band(x: Inputs, dropout: float) -> list[Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    return [band_attention(q, k, v, x["by_query"], x["by_key"], x["fixed"], _padding(q), dropout, SEED)]


def _modes(generator: torch.Generator, tokens: int, channels: int, modes: int = 16) -> Inputs:
    one = {
        "A_re": -torch.rand(modes, generator=generator) - 0.1,
        "A_im": 20 * _normal(generator, modes),
        "C": _normal(generator, modes, 2),
        "log_step": torch.tensor([-3.0]),
        "D": torch.ones(1),
    }
    return {"u": _normal(generator, 2, tokens, channels), **{f"_{name}": value for name, value in one.items()}}


def _convolve(x: Inputs, method: str) -> list[Tensor]:
    ssm = [x[f"_{name}"] for name in SSM._fields]
    return list(ssm_conv(x["u"], x["u"], ssm, ssm, _padding(x["u"][:, None]), "fft" if "_plain" in x else method))


def _flash(x: Inputs, packed_rows: bool, dropout: float) -> list[Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    lengths = (q.size(2) // 2, 1, q.size(2) - q.size(2) // 2 - 1)
    tables = {"query_table": with_fixed(q, x["by_query"], x["fixed"]), "key_table": x["by_key"]} if "fixed" in x else {}
    if "_plain" in x and tables:
        return _band(x, dropout)
    if "_plain" in x:
        return [_by_rows(q, k, v, lengths, dropout)] if packed_rows else _alibi(x, True, True, dropout)
    counts = torch.tensor([0, *lengths], device=q.device).cumsum(0) if packed_rows else (~_padding(q)).sum(1)
    where: dict[str, Any] = {"starts" if packed_rows else "token_counts": counts.to(torch.int32)}
    slopes = None if tables else _slopes(q, True)
    return [flash_attention(q, k, v, slopes, True, dropout_p=dropout, seed=SEED, **where, **tables)]


def _by_rows(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], dropout: float) -> Tensor:
    """The packed sequences as the rows of a padded batch, which have the same dropout."""
    pad = torch.nn.functional.pad
    rows = (
        torch.cat([pad(part, (0, 0, 0, max(lengths) - part.size(2))) for part in x.split(lengths, dim=2)])
        for x in (q, k, v)
    )
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    out = alibi_attention(*rows, _slopes(q, True), True, padding, dropout, SEED)
    return torch.cat([row[None, :, :length] for row, length in zip(out, lengths, strict=True)], dim=2)


def _attend(x: Inputs, backend: str, bias: bool) -> list[Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    name = "eager" if "_plain" in x else backend
    alibi: Any = ALiBi(HEADS, asymmetrical=True) if bias else None
    return [attend(q, k, v, bias=alibi, padding=_padding(q), backend=name)]


def _rows(generator: torch.Generator, rows: int, channels: int) -> Inputs:
    x, base = _normal(generator, 2, rows, channels), _normal(generator, 2, rows, channels)
    return {"x": x, "base": base, "weight": _normal(generator, channels), "bias": _normal(generator, channels)}


def _seed(x: Tensor) -> Tensor:
    return torch.tensor(SEED, device=x.device)


def _dropout_add(x: Inputs) -> list[Tensor]:
    # All inputs take part, so that all have gradients.
    scale = x["weight"].float().sum() + x["bias"].float().sum()
    return [residual.dropout_add(x["x"], x["base"], 0.1, _seed(x["x"])), scale]


def _norm(x: Inputs) -> list[Tensor]:
    seed = _seed(x["x"])
    return [residual.dropout_add_layer_norm(x["x"], x["base"], x["weight"], x["bias"], 1e-5, 0.1, seed)]


def _head(generator: torch.Generator, rows: int, channels: int, vocabulary: int) -> Inputs:
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    hidden, weight = _normal(generator, rows, channels), 0.05 * _normal(generator, vocabulary, channels)
    return {"hidden": hidden, "weight": weight, "bias": _normal(generator, vocabulary), "_targets": targets}


def _loss(x: Inputs) -> list[Tensor]:
    return [linear_cross_entropy(x["hidden"], x["weight"], x["_targets"], x["bias"])]


def _maps(generator: torch.Generator, rows: int, channels: int) -> Inputs:
    weight, bias = 0.05 * _normal(generator, 3 * channels, channels), _normal(generator, 3 * channels)
    return {"x": _normal(generator, rows, channels), "weight": weight, "bias": bias}


def _linear(x: Inputs) -> list[Tensor]:
    return [linear(x["x"], x["weight"], x["bias"])]


def _trees(generator: torch.Generator, rows: int, channels: int, depth: int, trees: int) -> Inputs:
    nodes = trees * (2 ** (depth + 1) - 1)
    tables = {name: 0.05 * _normal(generator, nodes, channels) for name in ("weight_in", "weight_out")}
    return {"x": _normal(generator, rows, channels), "bias_in": _normal(generator, nodes), **tables}


def _feed_forward(x: Inputs, depth: int, trees: int) -> list[Tensor]:
    return [fast_feed_forward(x["x"], x["weight_in"], x["bias_in"], x["weight_out"], depth, trees)]


def _weights(generator: torch.Generator, size: int) -> Inputs:
    """Masters and moments in float32, a gradient in half precision."""
    moments = {"_mean": 0.01 * _normal(generator, size), "_square": 1e-4 * _normal(generator, size).square()}
    return {"_param": 0.02 * _normal(generator, size), "=grad": 0.01 * _normal(generator, size), **moments}


def _adam(x: Inputs) -> list[Tensor]:
    """The third update, float32 weights first; in float64 by the formula."""
    param, grad, mean, square = x["_param"], x["=grad"], x["_mean"], x["_square"]
    lr, betas, decay, eps, factor = 1e-3, (0.9, 0.98), 0.01, 1e-6, 0.5
    if grad.dtype == torch.float64:
        param, mean, square, grad = param.double(), mean.double(), square.double(), grad * factor
        mean, square = betas[0] * mean + (1 - betas[0]) * grad, betas[1] * square + (1 - betas[1]) * grad**2
        corrected = (square / (1 - betas[1] ** 3)).sqrt() + eps
        param = param * (1 - lr * decay) - lr / (1 - betas[0] ** 3) * mean / corrected
        return [param, mean, square, param]
    low = torch.empty_like(grad)
    adam.low_precision_adam_([param], [grad], [mean], [square], [low], 3.0, lr, betas, decay, eps, factor)
    return [param, mean, square, low]


def _norms(x: Inputs) -> list[Tensor]:
    grad, block = x["=grad"], 256
    if grad.dtype == torch.float64:
        return [torch.stack([part.norm() for part in grad.split(block)])]
    return [adam.block_norms([grad], block)]
