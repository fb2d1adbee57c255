r"""The corpus formats without torch: writing ``.bin``/``.idx``, checking and mapping them.

``.bin`` holds the items' tokens one after the other. ``.idx`` is little-endian:

* memory-mapped (``--dataset-impl mmap``): magic ``MMIDIDX\0\0``, uint64 version 1, uint8 dtype code, uint64 N,
  int32[N] sizes in tokens, int64[N] byte offsets into ``.bin``;
* TNTIDX (``lazy`` and ``cached``), written only: magic ``TNTIDX\0\0``; uint64: version 1, dtype code, element size, N
  items, S sizes; int64[N + 1] positions in the sizes; int64[N + 1] positions in ``.bin`` (elements); int64[S] sizes
  (S = N for 1-D items).
"""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fairseq.errors import DataError, DataNotFoundError

MMAP_MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
MMAP_HEADER = struct.Struct("<9sQBQ")

DTYPES: dict[int, type] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.double,
    8: np.uint16,
    9: np.uint32,
    10: np.uint64,
}
_CODES: dict[np.dtype[Any], int] = {np.dtype(dtype): code for code, dtype in reversed(DTYPES.items())}
_CHECK_ITEMS = 1 << 20  # items checked at a time, so that checking never allocates anything of the corpus's size


def dtype_code(dtype: npt.DTypeLike) -> int:
    """The code of ``dtype`` in index files. Raises DataError for one that the format cannot hold."""
    code = _CODES.get(np.dtype(dtype))
    if code is None:
        raise DataError(f"token type {np.dtype(dtype)} cannot be stored; use one of {', '.join(map(str, _CODES))}")
    return code


def best_fitting_int_dtype(max_int_to_represent: int | None) -> type:
    """The smallest of uint16, uint32, int64 for ids below ``max_int_to_represent``; uint32 when that is unknown."""
    if max_int_to_represent is None:
        return np.uint32
    if max_int_to_represent < 65500:
        return np.uint16
    return np.uint32 if max_int_to_represent < 4294967295 else np.int64


def index_file_path(prefix_path: str) -> str:
    return f"{prefix_path}.idx"


def data_file_path(prefix_path: str) -> str:
    return f"{prefix_path}.bin"


def byte_offsets(sizes: npt.NDArray[np.integer[Any]], itemsize: int) -> npt.NDArray[np.int64]:
    """Start of each item in ``.bin``, in 64 bits whatever the type of ``sizes``."""
    offsets = np.zeros(len(sizes), dtype=np.int64)
    np.cumsum(sizes[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= itemsize
    return offsets


def write_index(path: str, sizes: npt.NDArray[np.integer[Any]], dtype: npt.DTypeLike) -> None:
    """Write ``.idx`` for items of ``sizes`` tokens stored one after the other.

    Works through ``sizes`` (which may be a mapped file) piece by piece, so memory stays flat.
    """
    itemsize = np.dtype(dtype).itemsize
    starts = range(0, len(sizes), _CHECK_ITEMS)
    with open(path, "wb") as handle:
        handle.write(MMAP_HEADER.pack(MMAP_MAGIC, VERSION, dtype_code(dtype), len(sizes)))
        for first in starts:
            handle.write(sizes[first : first + _CHECK_ITEMS].astype("<i4").tobytes())
        position = 0
        for first in starts:
            piece = sizes[first : first + _CHECK_ITEMS]
            handle.write((byte_offsets(piece, itemsize) + position).astype("<i8", copy=False).tobytes())
            position += int(piece.sum(dtype=np.int64)) * itemsize


@dataclass(frozen=True)
class MMapIndex:
    """A checked ``.idx``: ``sizes`` (N, int32) and ``pointers`` (N, int64, bytes) are views of the mapped file.

    ``is_contiguous`` means that the items lie one after the other from 0, as every builder writes them.
    """

    path: str
    dtype: np.dtype[Any]
    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    is_contiguous: bool

    def __len__(self) -> int:
        return len(self.sizes)


def read_index(path: str, bin_size: int) -> MMapIndex:
    """Map the index at ``path`` and check it against a ``.bin`` of ``bin_size`` bytes, which is not read.

    Raises DataNotFoundError, or DataError naming the file and its defect.
    """
    remedy = "copy or preprocess the data again"
    try:
        file_size = os.path.getsize(path)
    except FileNotFoundError:
        raise DataNotFoundError(f"index file not found: {path}") from None
    if file_size < MMAP_HEADER.size:
        raise DataError(f"{path} is truncated: {file_size} bytes, shorter than its header; {remedy}")
    with open(path, "rb") as handle:
        magic, version, code, count = MMAP_HEADER.unpack(handle.read(MMAP_HEADER.size))
    if magic != MMAP_MAGIC:
        raise DataError(
            f"{path} is not a memory-mapped index (it starts with {magic[:8]!r}); if it is of another kind, choose it"
            " with --dataset-impl, else preprocess the data again"
        )
    if version != VERSION:
        raise DataError(f"{path} has index version {version}, but only version {VERSION} is known; {remedy}")
    if code not in DTYPES:
        raise DataError(f"{path} names the unknown token type code {code}; {remedy}")
    expected = MMAP_HEADER.size + 12 * count
    if file_size != expected:
        state = "truncated" if file_size < expected else "inconsistent"
        raise DataError(f"{path} is {state}: {file_size} bytes, but {count} items take {expected}; {remedy}")
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    raw = np.memmap(path, mode="r") if file_size else np.empty(0, np.uint8)
    sizes = np.frombuffer(raw, dtype="<i4", count=count, offset=MMAP_HEADER.size)
    pointers = np.frombuffer(raw, dtype="<i8", count=count, offset=MMAP_HEADER.size + 4 * count)
    contiguous = _check_layout(path, sizes, pointers, dtype.itemsize, bin_size)
    return MMapIndex(path, dtype, sizes, pointers, contiguous)


def _check_layout(
    path: str, sizes: npt.NDArray[np.int32], pointers: npt.NDArray[np.int64], itemsize: int, bin_size: int
) -> bool:
    """Whether the items are contiguous; raises DataError when sizes, pointers and the length of ``.bin`` disagree."""
    bin_path = path.removesuffix(".idx") + ".bin"
    contiguous, position, last, end = True, 0, 0, 0
    for first in range(0, len(sizes), _CHECK_ITEMS):
        size = sizes[first : first + _CHECK_ITEMS]
        pointer = pointers[first : first + _CHECK_ITEMS]
        if int(size.min()) < 0:
            raise DataError(
                f"{path} is damaged: item {first + int(size.argmin())} has a negative size; preprocess again"
            )
        if int(pointer[0]) < last or bool((pointer[1:] < pointer[:-1]).any()):
            raise DataError(
                f"{path} is damaged: its item positions do not increase (older versions wrote such files beyond 2 GiB"
                " with several workers); preprocess the data again"
            )
        if itemsize > 1 and bool((pointer % itemsize).any()):
            raise DataError(f"{path} is damaged: an item begins inside a token; preprocess the data again")
        length = size.astype(np.int64) * itemsize
        if contiguous:
            starts = np.cumsum(length) - length + position
            contiguous = bool(np.array_equal(starts, pointer))
            position += int(length.sum())
        end = max(end, int((pointer + length).max()))
        last = int(pointer[-1])
    if end > bin_size or (contiguous and end != bin_size):
        state = "truncated" if end > bin_size else "too long"
        raise DataError(
            f"{bin_path} is {state} or does not belong to its index: it has {bin_size} bytes, but {path} describes {end};"
            " copy or preprocess the data again"
        )
    return contiguous


def map_tokens(path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The tokens of ``.bin`` as a read-only mapped array; an empty file gives an empty array. Nothing is read."""
    if os.path.getsize(path) == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray).view(dtype)


class TokenWriter:
    """Append items to a ``.bin``, then write its ``.idx``; a context manager closes the file.

    Sizes are kept in 4 bytes an item. For public use see `fairseq.data.indexed_dataset.MMapIndexedDatasetBuilder`.
    """

    def __init__(self, path: str, dtype: npt.DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        dtype_code(self.dtype)
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._sizes = array("i")

    def write(self, tokens: bytes | npt.NDArray[Any], sizes: npt.ArrayLike) -> None:
        """Append items of ``sizes`` tokens: their tokens in one array of ``self.dtype``, or its bytes."""
        self._file.write(tokens if isinstance(tokens, bytes) else np.ascontiguousarray(tokens).tobytes())
        self._sizes.frombytes(np.asarray(sizes, dtype=np.int32).tobytes())

    def append(self, bin_path: str, sizes: npt.ArrayLike) -> None:
        """Append a whole ``.bin`` of the same type."""
        with open(bin_path, "rb") as other:
            shutil.copyfileobj(other, self._file, 1 << 22)
        self._sizes.frombytes(np.asarray(sizes, dtype=np.int32).tobytes())

    def sizes(self) -> npt.NDArray[np.int32]:
        return np.frombuffer(self._sizes, dtype=np.int32)

    def close(self) -> None:
        self._file.close()

    def write_index(self, path: str) -> None:
        """Close the ``.bin`` and write the ``.idx`` at ``path``."""
        self.close()
        write_index(path, self.sizes(), self.dtype)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


TNT_MAGIC = b"TNTIDX\x00\x00"
TNT_HEADER = struct.Struct("<8sQQQQQ")
Longs = Sequence[int] | npt.NDArray[np.integer[Any]]


def write_tnt_index(path: str, dtype: npt.DTypeLike, dim_offsets: Longs, data_offsets: Longs, sizes: Longs) -> None:
    """Write ``.idx``; the offsets have one entry more than there are items."""
    header = TNT_HEADER.pack(
        TNT_MAGIC, 1, dtype_code(dtype), np.dtype(dtype).itemsize, len(data_offsets) - 1, len(sizes)
    )
    with open(path, "wb") as handle:
        handle.write(header)
        for values in (dim_offsets, data_offsets, sizes):
            handle.write(np.asarray(values, dtype="<i8").tobytes())
