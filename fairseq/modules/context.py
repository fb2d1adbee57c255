"""What the layers of one forward pass share besides the hidden states.

Legend: B batch, T tokens, H heads, C channels, N real tokens, R of them that are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fairseq.modules.attention_bias import AttentionBias
from fairseq.modules.packing import Packing


@dataclass
class EncoderContext:
    """Made once per pass by the encoder and handed to every layer; grows fields instead of layers growing arguments.

    ``padding`` is (B, T), True = padding, or None when the batch holds none (attention is quicker without a mask).
    ``attention_bias`` is added to the attention scores of every sequence, or None. With ``packing`` the hidden states
    are (1, N, C), the real tokens of one sequence after the other, and there is no ``padding``; only layers whose token
    mixer has ``packs = True`` meet it. ``read`` is for the last layer only: the rows, of hidden states seen as (B T, C),
    that anything reads. The layer then gives those, (1, R, C).
    """

    padding: Tensor | None = None
    attention_bias: AttentionBias | None = None
    packing: Packing | None = None
    read: Tensor | None = None
    _dense_bias: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, padding: Tensor | None, attention_bias: AttentionBias | None = None) -> EncoderContext:
        """A context that keeps ``padding`` only if something in it is True.

        Looking costs one transfer from the device a pass; under ``torch.compile`` it would break the graph, so there
        the mask is kept as it is.
        """
        if padding is not None and not torch.compiler.is_compiling() and padding.device.type != "meta":
            padding = padding if bool(padding.any()) else None
        return cls(padding, attention_bias)

    def select(self, x: Tensor) -> Tensor:
        """The rows of ``x`` (B, T, C) that are read, (1, R, C); all of it, as it is, before the last layer."""
        return x if self.read is None else x.flatten(0, 1).index_select(0, self.read).unsqueeze(0)

    def key_mask(self) -> Tensor | None:
        """(B, 1, 1, T), True = may be attended to, as ``scaled_dot_product_attention`` wants it."""
        return None if self.padding is None else ~self.padding[:, None, None, :]

    def dense_bias(self, scores: Tensor) -> Tensor | None:
        """The bias (1 or H, T, T) for ``scores`` (B, H, T, T) or anything of their dtype, device and last size but one.

        It is made once a pass, for the longest sequence, and only if a layer asks: not every backend needs it.
        """
        if self.attention_bias is None:
            return None
        tokens = scores.size(-2)
        if self._dense_bias is None:
            longest = tokens if self.packing is None else max(self.packing.lengths)
            self._dense_bias = self.attention_bias.dense(longest, scores.device, scores.dtype)
        return self._dense_bias[:, :tokens, :tokens]
