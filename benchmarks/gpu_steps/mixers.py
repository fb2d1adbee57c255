"""Step 5: other token mixers by length, their operators with the shapes of a base model in bf16, forward and backward.

Convolutions of BiGS, both directions, by chunks and by Fourier transforms; by chunks they should cost the same a token at any
length. Attention with tables over offsets, by query and by key, with dropout: our kernels, the same without tables,
and tables as a bias of (B, H, T, T) for torch's attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairseq.modules.attention_backends import Terms, attend_triton
from fairseq.modules.score_tables import Tables, attend_with_tables
from fairseq.modules.slots import EncoderContext
from fairseq.ops.ssm import SSM, ssm_conv
from gpu_steps.setting import Case, Row, Setting, median_seconds, peak_mib

TOKENS = 16384  # of a batch, whatever the length of its sequences
LENGTHS = (512, 4096, 16384)
CHANNELS, MODES = 768, 64
HEADS = 12
WITHOUT = "triton without tables"


def cases(setting: Setting) -> list[Case]:
    found = [
        (f"bigs by {method}, T {tokens}", functools.partial(convolutions, setting, method, tokens))
        for tokens in ((140, 24) if setting.tiny else LENGTHS)
        for method in ("chunks", "fft")
    ]
    found += [
        (f"attention with tables by {way}, T {tokens}", functools.partial(tables, setting, way, tokens))
        for tokens in ((16,) if setting.tiny else (512, 2048))
        for way in ("triton", WITHOUT, "sdpa")
    ]
    return [Case(name, run, least=3, limit=40) for name, run in found]


def convolutions(setting: Setting, method: str, tokens: int) -> Row:
    channels, modes = setting.size(CHANNELS, 8), setting.size(MODES, 4)
    ssm = SSM(
        torch.full((modes,), -0.5, device=setting.device),
        3.0 * torch.arange(modes, device=setting.device),
        torch.randn(modes, 2, device=setting.device),
        torch.full((1,), -4.6, device=setting.device),
        torch.ones(1, device=setting.device),
    )
    inputs = [_normal(setting, tokens, channels) for _ in range(2)]
    for x in (*inputs, *ssm):
        x.requires_grad_()

    def forward() -> tuple[Tensor, Tensor]:
        return ssm_conv(*inputs, ssm, ssm, method=method)

    return measured(setting, method, tokens, forward, (*inputs, *ssm))


def tables(setting: Setting, way: str, tokens: int) -> Row:
    heads, width = setting.size(HEADS, 2), setting.size(CHANNELS // HEADS, 16)
    q, k, v = (_normal(setting, tokens, heads, width).transpose(1, 2) for _ in range(3))
    reach = setting.size(8, 2)
    by = [_normal(setting, tokens, heads, 2 * reach + 1).transpose(1, 2) for _ in range(2)]
    inputs = [q, k, v] if way == WITHOUT else [q, k, v, *by]
    for x in inputs:
        x.requires_grad_()
    context, dropout = EncoderContext(), 0.1

    def forward() -> tuple[Tensor]:
        if way == WITHOUT:
            return (attend_triton(q, k, v, Terms(), dropout),)
        return (attend_with_tables(q, k, v, Tables(*by), context, dropout=dropout, backend=way),)

    return measured(setting, way, tokens, forward, inputs)


def _normal(setting: Setting, tokens: int, *shape: int) -> Tensor:
    """(B, T, ...) for a batch of TOKENS tokens."""
    dtype = torch.float32 if setting.tiny else torch.bfloat16  # Triton's interpreter is wrong in bf16
    return torch.randn(setting.size(max(TOKENS // tokens, 1), 1), tokens, *shape, device=setting.device, dtype=dtype)


def measured(
    setting: Setting, way: str, tokens: int, forward: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> Row:
    def both() -> object:
        outputs = forward()
        return torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])

    with torch.no_grad():
        once = median_seconds(setting, forward)
    seconds = median_seconds(setting, both)
    return {
        "way": way,
        "tokens": tokens,
        "forward ms": once * 1e3,
        "ms": seconds * 1e3,
        "ns a token": seconds * 1e9 / setting.size(TOKENS, tokens),
        "MiB": peak_mib(setting, both),
    }
