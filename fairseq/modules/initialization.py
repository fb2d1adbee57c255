"""The initialisation of BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq.modules.attention import MultiheadSelfAttention

STD = 0.02


def init_bert_params(module: nn.Module) -> None:
    """For ``model.apply``: N(0, 0.02) for linear maps and embeddings, zero for biases and for padding rows.

    Numbers are drawn on the CPU whatever the device, so that a seed gives the same weights everywhere. Query, key and
    value projections are drawn once more when their attention module is visited; the original does, and a seed should
    give the original's weights.
    """
    if isinstance(module, nn.Linear):
        _normal(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        _normal(module.weight)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    if isinstance(module, MultiheadSelfAttention):
        for projection in (module.q_proj, module.k_proj, module.v_proj):
            _normal(projection.weight)


@torch.no_grad()
def _normal(weight: Tensor) -> None:
    if weight.device.type in ("cpu", "meta"):
        weight.normal_(0.0, STD)
    else:
        weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).normal_(0.0, STD))
