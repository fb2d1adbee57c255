"""The TNTIDX index (``--dataset-impl lazy`` and ``cached``), without torch.

``.idx`` (little-endian): magic ``TNTIDX\\0\\0``; uint64: version 1, dtype code, element size, N items, S sizes; int64[N + 1]
positions in the sizes; int64[N + 1] positions in ``.bin`` (elements); int64[S] sizes (S = N for 1-D items).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairseq.data.mmap_index import dtype_code

MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<8sQQQQQ")
Longs = Sequence[int] | npt.NDArray[np.integer[Any]]


def write_tnt_index(path: str, dtype: npt.DTypeLike, dim_offsets: Longs, data_offsets: Longs, sizes: Longs) -> None:
    """Write ``.idx``; the offsets have one entry more than there are items."""
    header = HEADER.pack(MAGIC, 1, dtype_code(dtype), np.dtype(dtype).itemsize, len(data_offsets) - 1, len(sizes))
    with open(path, "wb") as handle:
        handle.write(header)
        for values in (dim_offsets, data_offsets, sizes):
            handle.write(np.asarray(values, dtype="<i8").tobytes())
