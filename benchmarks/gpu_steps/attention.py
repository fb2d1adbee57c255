"""Step 4: attention with ALiBi by every backend, and torch's flash kernel without a bias beside them.

B H = 96 heads of width 64 in bf16. TFLOP/s count 4 B H T^2 D in forward and 14 with backward (two products, and five more,
the scores once again), whatever a backend does itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fairseq.modules.attention_backends import BACKENDS, attend
from fairseq.modules.attention_bias import ALiBi
from gpu_steps.setting import Case, Row, Setting, median_seconds, peak_mib

HEADS, WIDTH = 12, 64
FLASH = "flash without bias"
LENGTHS = (2048, 512, 8192)  # the goal first


def lengths(setting: Setting) -> tuple[int, ...]:
    return (32, 16) if setting.tiny else LENGTHS


def cases(setting: Setting) -> list[Case]:
    return [
        Case(
            f"{backend}, T {tokens}, dropout {dropout}, {'with backward' if backward else 'forward'}",
            functools.partial(measure, setting, backend, tokens, dropout, backward),
            least=3,
            limit=60 if backend == "flex" else 30,
        )
        for tokens in lengths(setting)
        for dropout in (0.0, 0.1)
        for backend in (FLASH, *reversed(BACKENDS))
        for backward in (True, False)
    ]


def measure(setting: Setting, backend: str, tokens: int, dropout: float, backward: bool) -> Row:
    sequences, heads, width = setting.size(96 // HEADS, 1), setting.size(HEADS, 2), setting.size(WIDTH, 16)
    dtype = torch.float32 if setting.tiny else torch.bfloat16  # Triton's interpreter is wrong in bf16
    shape = (sequences, tokens, heads, width)  # as the projections lay them out
    q, k, v = (torch.randn(shape, device=setting.device, dtype=dtype).transpose(1, 2) for _ in range(3))
    forward = functools.partial(attention, setting, backend, q, k, v, dropout)
    call: Callable[[], object] = forward
    if backward:
        upstream = torch.randn(shape, device=setting.device, dtype=dtype).transpose(1, 2)
        for x in (q, k, v):
            x.requires_grad_()
        call = functools.partial(_both, forward, (q, k, v), upstream)
    seconds = median_seconds(setting, call)
    return {
        "backend": backend,
        "tokens": tokens,
        "dropout": dropout,
        "backward": backward,
        "ms": seconds * 1e3,
        "TFLOP/s": (14 if backward else 4) * sequences * heads * tokens**2 * width * 1e-12 / seconds,
        "MiB": peak_mib(setting, call),
    }


def _both(forward: Callable[[], Tensor], inputs: tuple[Tensor, ...], upstream: Tensor) -> object:
    return torch.autograd.grad(forward(), inputs, upstream)


def attention(setting: Setting, backend: str, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    if backend != FLASH:
        bias = ALiBi(q.size(1), asymmetrical=True)
        return attend(q, k, v, bias=bias, dropout=dropout, backend=backend)
    if setting.tiny:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
