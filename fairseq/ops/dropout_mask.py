"""The mask of dropout that can be computed again from a seed: reference implementation of fairseq/csrc/common/philox.h."""

from __future__ import annotations

import torch
from torch import Tensor

_HALVES = 8  # keys in a row that a counter of Philox decides about: fairseq/csrc/common/philox.h


def dropout_factors(weights: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """Like ``weights`` (B, H, T, J): 0 for dropped probabilities, 1 / (1 - p) for the others, p being a multiple of 2^-16.

    Philox4x32-10: counter (j // 8, i, b * H + h, 0), key = (low word of the seed, high word). Half j % 8 of the four
    words, low half of each first, decides about key j, which is kept when those 16 bits reach p * 2^16.
    """
    threshold = int(dropout_p * 65536 + 0.5)
    scale = 65536 / (65536 - threshold) if threshold < 65536 else 0.0
    batch, heads, tokens, columns = weights.shape
    device = seed.device
    words = [
        torch.arange((columns + _HALVES - 1) // _HALVES, device=device),
        torch.arange(tokens, device=device)[:, None],
        torch.arange(batch * heads, device=device)[:, None, None],
        torch.zeros((), dtype=torch.int64, device=device),
    ]
    words = _philox(list(torch.broadcast_tensors(*words)), seed & _MASK, (seed >> 32) & _MASK)
    halves = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16)]
    bits = torch.stack(halves, dim=-1).flatten(-2)
    keep = bits[..., :columns].unflatten(0, (batch, heads)) >= threshold
    return keep.to(weights.dtype) * scale


_MASK = 0xFFFFFFFF


def _philox(counter: list[Tensor], key0: Tensor, key1: Tensor) -> list[Tensor]:
    """Four words of 32 random bits for each counter, all as int64 (whose products wrap around as unsigned ones do)."""
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (second >> 32 & _MASK) ^ b ^ key0, second & _MASK
        c, d = (first >> 32 & _MASK) ^ d ^ key1, first & _MASK
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return [a, b, c, d]
