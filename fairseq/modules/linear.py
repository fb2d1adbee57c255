"""Linear maps as parts of models."""

from __future__ import annotations

from torch import Tensor, nn

from fairseq.ops.linear import has_native_bfloat16, linear


class Linear(nn.Linear):
    """``nn.Linear`` in the quickest way the processor has: see ``fairseq.ops.linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


__all__ = ["Linear", "has_native_bfloat16", "linear"]
