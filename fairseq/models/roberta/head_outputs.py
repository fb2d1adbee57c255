"""A head of a loaded RoBERTa run over a data set, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq.errors import ConfigError
from fairseq.tree import map_tensors


def head_outputs(
    hub: Any, dataset: Any, head: str | None, default: str, batch_size: int
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(batch, output of the head) of all of ``dataset``, in evaluation mode and without gradients.

    The head is ``head``, else the one that the fine-tuning task names, else ``default``. Raises ConfigError when the
    model has none of that name.
    """
    name = head or getattr(hub.task, "head_name", default)
    heads = hub.model.classification_heads
    if name not in heads:
        raise ConfigError(f"the model has no head {name!r}; its heads: {', '.join(heads) or 'none'}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, but is {batch_size} instead")
    order = np.argsort(dataset.sizes, kind="stable")
    training = hub.model.training
    hub.model.eval()
    try:
        for first in range(0, len(order), batch_size):
            sample = dataset.collater([dataset[int(index)] for index in order[first : first + batch_size]])
            sample = map_tensors(lambda tensor: tensor.to(hub.device), sample)
            with torch.no_grad():
                output = hub.model(**sample["net_input"], features_only=True, classification_head_name=name)[0]
            yield sample, output
    finally:
        hub.model.train(training)
