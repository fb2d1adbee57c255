"""Step 5: other token mixers by length, their operators with the shapes of a base model in bf16, forward and backward.

Convolutions of BiGS, both directions, by chunks and by Fourier transforms, which should cost the same a token at any length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fairseq.ops.ssm import SSM, ssm_conv
from gpu_steps.setting import Case, Row, Setting, median_seconds, peak_mib

TOKENS = 16384  # of a batch, whatever the length of its sequences
LENGTHS = (512, 4096, 16384)
CHANNELS, MODES = 768, 64


def cases(setting: Setting) -> list[Case]:
    return [
        Case(
            f"bigs by {method}, T {tokens}", functools.partial(convolutions, setting, method, tokens), least=3, limit=30
        )
        for tokens in ((140, 24) if setting.tiny else LENGTHS)
        for method in ("chunks", "fft")
    ]


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
