"""The items of a corpus beside a pass over its tokens: where each ends, a piece at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.index_formats import is_tnt, read_index, read_tnt_index

_ITEMS = 1 << 20

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """What a checked index of either kind says. On disk ids are higher by ``shift``; ``sizes`` (N) are mapped."""

    dtype: np.dtype[Any]
    sizes: npt.NDArray[Any]
    shift: int

    @classmethod
    def read(cls, path: str, bin_size: int) -> Items:
        """Raises DataError, naming the file and its defect."""
        if is_tnt(path):
            tnt = read_tnt_index(path, bin_size)
            return cls(tnt.dtype, tnt.lengths(), 1)
        index = read_index(path, bin_size)
        return cls(index.dtype, index.sizes, 0)


class ItemEnds:
    """Goes through ``sizes`` (N, tokens) once; ``empty`` counts the items of one token so far, ``none`` those without any."""

    def __init__(self, sizes: npt.NDArray[Any]) -> None:
        self._sizes = sizes
        self._seen, self._position = 0, 0  # items and tokens that were looked at
        self._numbers = self._places = np.empty(0, dtype=np.int64)
        self.empty = self.none = 0

    def before(self, stop: int) -> tuple[Longs, Longs]:
        """(numbers, places of the last token) of the items that end before token ``stop``, since the last call."""
        while self._seen < len(self._sizes) and self._position <= stop:
            self._look()
        count = int(np.searchsorted(self._places, stop))
        numbers, places = self._numbers[:count], self._places[:count]
        self._numbers, self._places = self._numbers[count:], self._places[count:]
        return numbers, places

    def _look(self) -> None:
        sizes = self._sizes[self._seen : self._seen + _ITEMS].astype(np.int64)
        ends = self._position + np.cumsum(sizes)
        holds = np.flatnonzero(sizes)
        self._numbers = np.concatenate([self._numbers, self._seen + holds])
        self._places = np.concatenate([self._places, ends[holds] - 1])
        self.empty += int(np.count_nonzero(sizes == 1))
        self.none += len(sizes) - len(holds)
        self._seen += len(sizes)
        self._position = int(ends[-1])
