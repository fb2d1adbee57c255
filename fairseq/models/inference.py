"""The one loop that runs a model over data without training it: evaluation mode, no gradients, the model's device.

Legend: B batch, N examples, T tokens, K outputs of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, takewhile
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fairseq.data.datasets import tokens_of
from fairseq.errors import ConfigError
from fairseq.tree import map_tensors

T = TypeVar("T")
Sample = dict[str, Any]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode, and afterwards in the mode that it had."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def run_batches(model: nn.Module, batches: Iterable[Sample], step: Callable[[Sample], T]) -> Iterator[tuple[Sample, T]]:
    """(batch, ``step(batch)``) of every batch, on the device of ``model``."""
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for sample in batches:
            sample = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), sample)
            with torch.no_grad():  # here, because a generator would leave its caller without gradients
                output = step(sample)
            yield sample, output


def head_outputs(model: Any, batches: Iterable[Sample], head: str) -> Iterator[tuple[Sample, Tensor]]:
    """(batch, output of ``head``) of every batch. Raises ConfigError when the model has no such head.

    A batch of choices (``net_input1``, ``net_input2``, ...) gives (B, K), a column for each of them.
    """
    heads = model.classification_heads
    if head not in heads:
        if not heads:
            raise ConfigError("the model has no head to predict with: fine-tune it on a task first")
        raise ConfigError(f"the model has no head {head!r}; its heads: {', '.join(heads)}")

    def step(sample: Sample) -> Tensor:
        names = takewhile(sample.__contains__, (f"net_input{k}" for k in count(1)))
        inputs = [sample["net_input"]] if "net_input" in sample else [sample[name] for name in names]
        outputs = [model(**item, features_only=True, classification_head_name=head)[0] for item in inputs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    return run_batches(model, batches, step)


def length_batches(dataset: Any, batch_size: int, longest_first: bool = False) -> Iterator[Sample]:
    """All of ``dataset`` in batches of ``batch_size`` items of like length."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, but is {batch_size} instead")
    sizes = tokens_of(dataset, np.arange(len(dataset)))
    order = np.argsort(-sizes if longest_first else sizes, kind="stable").tolist()
    for first in range(0, len(order), batch_size):
        yield dataset.collater([dataset[index] for index in order[first : first + batch_size]])


def in_order(outputs: Iterable[tuple[Sample, Tensor]]) -> Tensor:
    """The rows (N, ...) of all outputs, in the order of the examples' ids."""
    found: dict[int, Tensor] = {}
    for sample, rows in outputs:
        found |= dict(zip(sample["id"].tolist(), rows, strict=True))
    return torch.stack([found[index] for index in sorted(found)])
