"""``--compile``: torch.compile for the layers of the encoder."""

from __future__ import annotations

from torch import nn


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of ``model`` in place, or the whole of it where there is no list of layers.

    Layers have one code, so that the first one's compilation serves all; what differs from batch to batch (the number of
    masked tokens) stays outside. Names and classes of the modules stay as they are, and so do checkpoints.
    """
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    for part in layers or [model]:
        part.compile()
