"""Attention biases by the positions of query and key alone; see ``AttentionBias`` in ``fairseq.modules.slots``.

Legend: H heads, T tokens, i row of a query, j column of a key.
"""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from fairseq.modules.slots import EncoderShape
from fairseq.registry import ATTENTION_BIASES


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """One slope per head: for a power of two the powers 1 to H of 2^(-8/H).

    Otherwise those of the largest power of two c below H, then every other one of 2c, as many as are missing.
    """
    c = 1 << (num_heads.bit_length() - 1)
    start = 2 ** -(2 ** -(math.log2(c) - 3))
    slopes = tuple(start ** (k + 1) for k in range(c))
    return slopes if c == num_heads else slopes + alibi_slopes(2 * c)[::2][: num_heads - c]


def slopes_on(num_heads: int, device: torch.device) -> Tensor:
    """`alibi_slopes` (H,) float32, sent to ``device`` once: each time would be a copy that waits for it."""
    return _sent_slopes(num_heads, device)


def computed_slopes(num_heads: int, device: torch.device) -> Tensor:
    """`alibi_slopes` (H,) float32 computed on ``device``, for compiled graphs: what they hold as a constant would be uploaded
    in each layer, and a tensor from outside would break them in two. The last bit may differ.
    """
    c = 1 << (num_heads.bit_length() - 1)
    powers = torch.arange(1, c + 1, dtype=torch.float32, device=device) * (8 / c)
    between = torch.arange(1, 2 * (num_heads - c) + 1, 2, dtype=torch.float32, device=device) * (4 / c)
    return torch.exp2(-torch.cat([powers, between]))


@functools.cache
def _sent_slopes(num_heads: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training may use them next
        return torch.tensor(alibi_slopes(num_heads), dtype=torch.float32, device=device)


@dataclass(frozen=True)
class ALiBi:
    """Attention with linear biases (Press et al. 2022, arXiv 2108.12409): -slope times the distance from i to j.

    The distance is |i - j|; the asymmetrical form takes 0.5 off what lies ahead (j > i), so that the encoder can tell
    it from what lies behind. Kernels that know ALiBi need only ``slopes`` and ``asymmetrical``.

    Nothing is stored but numbers, so nothing is in the state dict, in half precision, or limited to the length that a
    model was trained at. Deviations from the original, which kept a (H, P, P) table, rounded it for good when the model
    was half, and repeated it for every sequence of a batch.
    """

    num_heads: int
    _: KW_ONLY
    asymmetrical: bool = False

    @property
    def slopes(self) -> tuple[float, ...]:
        return alibi_slopes(self.num_heads)

    def slope_tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """(H,) float32, not to be written to."""
        at = torch.device(device)
        return (computed_slopes if torch.compiler.is_compiling() else slopes_on)(self.num_heads, at)

    def dense(self, tokens: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        at = torch.arange(tokens, dtype=torch.float32, device=device)
        offset = at - at.unsqueeze(1)  # j - i
        distance = offset.abs()
        if self.asymmetrical:
            distance = distance - 0.5 * (offset > 0)
        return (-distance * self.slope_tensor(device).view(-1, 1, 1)).to(dtype)


@ATTENTION_BIASES.register("alibi")
def alibi(shape: EncoderShape) -> ALiBi:
    return ALiBi(shape.heads)


@ATTENTION_BIASES.register("alibi_asymmetrical")
def alibi_asymmetrical(shape: EncoderShape) -> ALiBi:
    return ALiBi(shape.heads, asymmetrical=True)


@ATTENTION_BIASES.register("none")
def no_attention_bias(shape: EncoderShape) -> None:
    """Scores as they are."""
