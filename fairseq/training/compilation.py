"""``--compile``: every layer through torch.compile, once for all lengths."""

from __future__ import annotations

from typing import Any

from torch import nn

from fairseq.modules.encoder import Encoder

#: Most compilations of the code of a layer. One each is for batches with and without padding, for the last layer of those of
#: which not everything is read, for a single sequence, with and without gradients; torch allows 8 and then stops compiling.
KINDS = 32


def compile_layers(model: nn.Module, **options: Any) -> None:
    """Compile every layer of ``model`` in place, or the whole of it where there is no list of layers.

    Layers have one code, so that the first one's compilation serves all; sizes are symbols in it, so that it serves all
    batches; what differs from batch to batch (the number of masked tokens) stays outside. Names and classes of the modules
    stay as they are, and so do checkpoints. ``options`` go to ``torch.compile``.
    """
    import torch._dynamo.config  # takes seconds

    torch._dynamo.config.recompile_limit = max(KINDS, torch._dynamo.config.recompile_limit)
    for encoder in model.modules():
        if isinstance(encoder, Encoder):
            encoder.pack_below = 0.0  # the lengths of packed sequences would be constants of the compiled code
    for part in _layers(model) or [model]:
        part.compile(**{"dynamic": True, **options})


def _layers(model: nn.Module) -> list[nn.Module]:
    """The elements of all lists of modules, but for lists within them."""
    found: list[nn.Module] = []
    for child in model.children():
        found.extend(child if isinstance(child, nn.ModuleList) else _layers(child))
    return found
