"""The loss scale of float16 training.

Float16 gradients underflow, so the loss is multiplied by a scale before backward and the gradients are divided by it.
The scale doubles after a window of good updates and halves when a gradient overflows; that update is skipped.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


class DynamicLossScaler:
    """A loss scale that follows the overflows.

    Args: ``init_scale``; ``scale_factor`` by which it grows and shrinks; ``scale_window``, the number of updates after
    an overflow (or after the last window) before it grows; ``tolerance``, the share of overflows since the last change
    from which it shrinks (0: at each one); ``threshold``, below which it does not shrink (None: none);
    ``min_loss_scale``, at or below which training gives up.
    """

    def __init__(
        self,
        init_scale: float = 2.0**15,
        scale_factor: float = 2.0,
        scale_window: int = 2000,
        tolerance: float = 0.0,
        threshold: float | None = None,
        min_loss_scale: float = 1e-4,
    ) -> None:
        self.loss_scale = init_scale
        self.scale_factor = scale_factor
        self.scale_window = scale_window
        self.tolerance = tolerance
        self.threshold = threshold
        self.min_loss_scale = min_loss_scale
        self._iter = 0
        self._last_overflow = -1
        self._last_rescale = -1
        self._overflows_since_rescale = 0

    def scale(self, outputs: Tensor) -> Tensor:
        return self.loss_scale * outputs

    def update(self) -> None:
        """Count a good update; at the end of a window the scale grows."""
        if (self._iter - self._last_overflow) % self.scale_window == 0:
            self.loss_scale *= self.scale_factor
            self._last_rescale = self._iter
        self._iter += 1

    def check_overflow(self, grad_norm: float | Tensor) -> None:
        """Return for a finite ``grad_norm``; otherwise count an overflow and raise.

        Raises OverflowError (skip this update), or FloatingPointError when the scale has become too small.
        """
        if math.isfinite(float(grad_norm)):
            return
        previous = self.loss_scale
        self._last_overflow = self._iter
        self._overflows_since_rescale += 1
        share = self._overflows_since_rescale / (self._iter - self._last_rescale)
        if share >= self.tolerance:
            self.loss_scale = max(self.loss_scale / self.scale_factor, self.threshold or 0.0)
            self._last_rescale = self._iter
            self._overflows_since_rescale = 0
        if self.loss_scale <= self.min_loss_scale:
            self.loss_scale = previous
            raise FloatingPointError(
                f"the loss scale has fallen to its minimum ({self.min_loss_scale}): the loss is probably exploding; "
                "try a lower learning rate, gradient clipping or a larger batch"
            )
        self._iter += 1
        raise OverflowError(f"gradient overflow; the loss scale is now {self.loss_scale}")

    def state_dict(self) -> dict[str, Any]:
        """The counters, without the scale itself (which checkpoints have kept in a place of its own)."""
        return {
            "iter": self._iter,
            "last_overflow": self._last_overflow,
            "last_rescale": self._last_rescale,
            "overflows_since_rescale": self._overflows_since_rescale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._iter = int(state["iter"])
        self._last_overflow = int(state["last_overflow"])
        self._last_rescale = int(state["last_rescale"])
        self._overflows_since_rescale = int(state["overflows_since_rescale"])
