"""Finds the first tensor that is not finite, so that a diverged run says where it broke."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def first_bad_parameter(model: nn.Module) -> str | None:
    """Description of the first parameter of ``model`` holding NaN or infinity, or None."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    return None


def first_bad_gradient(model: nn.Module) -> str | None:
    """Description of the first gradient of ``model`` holding NaN or infinity, or None."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"gradient of {name}"
    return None


def first_bad_tensor(model: nn.Module, criterion: nn.Module, batches: Iterable[Any]) -> str | None:
    """Description of the first parameter, module's output for ``batches``, or gradient that is not finite, or None."""
    bad = first_bad_parameter(model)
    for batch in batches if bad is None else ():
        with keep_gradients(model), NanDetector(model, backward=False) as detector, torch.no_grad():
            criterion(model, batch)
        if detector.found is not None:
            return detector.found
    return bad or first_bad_gradient(model)


class NanDetector:
    """Context that watches the outputs of every sub-module of ``model`` in a forward pass.

    ``found`` is the description of the first output that was not finite, or None.
    """

    def __init__(self, model: nn.Module, forward: bool = True, backward: bool = True) -> None:
        self.model = model
        self.found: str | None = None
        self._forward, self._backward = forward, backward
        self._handles: list[Any] = []

    def __enter__(self) -> NanDetector:
        for name, module in self.model.named_modules():
            if self._forward:
                self._handles.append(module.register_forward_hook(self._watch(f"output of {name or 'the model'}")))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._backward and self.found is None:
            self.found = first_bad_gradient(self.model)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, where: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.found is None and any(not torch.isfinite(t).all() for t in _floats(output)):
                self.found = where
                logger.warning("NaN or infinity detected in the %s", where)

        return hook


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)


@contextmanager
def keep_gradients(model: nn.Module) -> Iterator[None]:
    """Leave the gradients of ``model`` as they were, whatever happens inside."""
    saved = [parameter.grad for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, grad in zip(model.parameters(), saved, strict=True):
            parameter.grad = grad
