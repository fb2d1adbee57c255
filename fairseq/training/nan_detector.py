"""Updates that diverge: some are skipped on request, the others end the run, which says where it broke.

`first_bad_tensor` finds the first tensor that is not finite.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fairseq.distributed.group import gather
from fairseq.distributed.shards import own_rows
from fairseq.errors import NonFiniteError
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.models.loading import first_not_finite
from fairseq.tree import is_sharded

logger = logging.getLogger(TRAIN_LOGGER)


class BadUpdates:
    """Updates whose loss or gradient is not finite: at most ``most`` in a row are skipped (``skip_bad_updates``)."""

    def __init__(self, most: int, save_dir: str) -> None:
        self.most, self.save_dir = most, save_dir
        self.in_a_row = 0

    def skips(self, failure: FloatingPointError, update: int) -> bool:
        """Count the bad ``update`` and say whether training may go on without it."""
        if not isinstance(failure, NonFiniteError):
            return False
        self.in_a_row += 1
        if self.in_a_row > self.most:
            return False
        logger.warning(
            "update %d is skipped: its loss or gradient is NaN or infinite (%d in a row, at most %d)",
            update,
            self.in_a_row,
            self.most,
        )
        return True

    def error(
        self, failure: FloatingPointError, update: int, loss: float, where: Callable[[], str | None]
    ) -> NonFiniteError:
        """The error that ends the run; ``where`` describes the first bad tensor."""
        if not isinstance(failure, NonFiniteError):  # the loss scale has reached its minimum
            return NonFiniteError(f"update {update}: {failure}")
        row = f" {self.in_a_row} times in a row" if self.in_a_row > 1 else ""
        return NonFiniteError(
            f"update {update}: the loss ({loss:g} nats) or the gradient is NaN or infinite{row}; first bad tensor: "
            f"{where() or 'the gradient norm'}; the checkpoints in {self.save_dir} are as they were: "
            "lower the learning rate, set --clip-norm, or look at this batch"
        )


def _first_bad(kind: str, named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    for name, tensor in named:
        own = own_rows(tensor) if is_sharded(tensor) else tensor
        if own is not None and not torch.isfinite(own).all():
            return f"{kind} {name}"
    return None


def first_bad_gradient(model: nn.Module) -> str | None:
    """Description of the first gradient of ``model`` holding NaN or infinity, or None."""
    return _first_bad("gradient of", ((name, parameter.grad) for name, parameter in model.named_parameters()))


def first_bad_tensor(
    model: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Any],
    first_found: Callable[[str | None], str | None] = lambda found: found,
) -> str | None:
    """Description of the first parameter, module's output for ``batches``, or gradient that is not finite, or None.

    ``first_found``: of processes that look together, what one of them has found.
    """
    bad = first_found(_first_bad("parameter", model.named_parameters()))
    for batch in batches if bad is None else ():
        with NanDetector(model, backward=False) as detector, torch.no_grad():
            criterion(model, batch)
        found = first_found(detector.found)
        if found is not None:
            return found
    return bad or first_found(first_bad_gradient(model))


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
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if self.found is None and any(not torch.isfinite(tensor).all() for tensor in tensors):
                self.found = where
                logger.warning("NaN or infinity detected in the %s", where)

        return hook


def with_finite_weights(state: dict[str, Any], model: nn.Module, directory: str) -> dict[str, Any]:
    """``state`` of ``model``, if its weights are finite: nothing else may replace a good checkpoint in ``directory``.

    Where they are spread over the processes, each looks at its own rows. Raises NonFiniteError.
    """
    weights = {name: own_rows(value) if is_sharded(value) else value for name, value in state["model"].items()}
    wrong = first_not_finite((name, weights[name]) for name, _ in model.named_parameters() if name in weights)
    if any(map(is_sharded, state["model"].values())):
        wrong = next((found for found in gather(wrong) if found is not None), None)
    if wrong is not None:
        updates = state["optimizer_history"][-1]["num_updates"] if state.get("optimizer_history") else 0
        raise NonFiniteError(
            f"after update {updates} {wrong}: nothing is saved, the checkpoints in {directory} are as they were; lower the "
            "learning rate, raise the optimizer's epsilon, or set --clip-norm"
        )
    return state
