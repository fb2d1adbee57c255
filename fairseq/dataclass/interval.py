"""The range of values that a setting may have, as ``option(..., within="[0, 1)")`` declares it.

Brackets as in mathematics: a square one includes its bound, a round one does not; ``inf`` is no bound.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """Numbers from ``low`` to ``high``, with or without the bounds themselves. NaN is in none."""

    low: float
    high: float
    has_low: bool
    has_high: bool

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value >= self.low if self.has_low else value > self.low
        return above and (value <= self.high if self.has_high else value < self.high)

    def describe(self, value: Any = 0) -> str:
        """In words, for a sentence about ``value``: ``at least 0 and below 1``."""
        words = []
        if self.low > -math.inf:
            words.append(f"{'at least' if self.has_low else 'above'} {self.low:g}")
        if self.high < math.inf:
            words.append(f"{'at most' if self.has_high else 'below'} {self.high:g}")
        elif isinstance(value, float) and not math.isfinite(value):
            words.append("a finite number")
        return " and ".join(words)


@functools.cache
def parse_interval(text: str) -> Interval:
    """``[0, 1)``, ``(0, inf)``, ..."""
    low, _, high = text[1:-1].partition(",")
    return Interval(float(low), float(high), text[0] == "[", text[-1] == "]")
