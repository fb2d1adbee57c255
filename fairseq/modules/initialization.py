"""The initialization of BERT, and what weight decay leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STD = 0.02


def init_bert_params(module: nn.Module) -> None:
    """For ``model.apply``: N(0, 0.02) for linear maps and embeddings, zero for biases and for padding rows.

    A module that defines ``draw_weights()`` draws by itself instead, after its children have been visited. Numbers are
    drawn on the CPU whatever the device, so that a seed gives the same weights everywhere.
    """
    own: Any = getattr(module, "draw_weights", None)
    if own is not None:
        own()
    elif isinstance(module, nn.Linear):
        normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        normal_(module.weight)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()


@torch.no_grad()
def normal_(weight: Tensor) -> None:
    """Draw ``weight`` from N(0, 0.02)."""
    if weight.device.type in ("cpu", "meta"):
        weight.normal_(0.0, STD)
    else:
        weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).normal_(0.0, STD))


def exempt_biases_and_norms(model: nn.Module) -> None:
    """No weight decay for these: see the tags of ``fairseq.optim.parameter_groups``."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, nn.LayerNorm):
                parameter.no_decay = True  # type: ignore[attr-defined]
