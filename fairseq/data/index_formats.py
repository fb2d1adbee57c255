r"""The corpus formats without torch: writing ``.bin``/``.idx``, checking and mapping them.

``.bin`` holds the items' tokens one after the other. ``.idx`` is little-endian:

* memory-mapped (``--dataset-impl mmap``): magic ``MMIDIDX\0\0``, uint64 version 1, uint8 dtype code, uint64 N,
  int32[N] sizes in tokens, int64[N] byte offsets into ``.bin``;
* TNTIDX (``lazy`` and ``cached``), written only: magic ``TNTIDX\0\0``; uint64: version 1, dtype code, element size, N
  items, S sizes; int64[N + 1] positions in the sizes; int64[N + 1] positions in ``.bin`` (elements); int64[S] sizes
  (S = N for 1-D items).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

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
_REMEDY = "copy or preprocess the data again"
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
            lengths = sizes[first : first + _CHECK_ITEMS].astype(np.int64) * itemsize
            ends = position + np.cumsum(lengths)
            handle.write((ends - lengths).astype("<i8", copy=False).tobytes())
            position = int(ends[-1])


def read_header(path: str, layout: struct.Struct, magic: bytes, kind: str) -> list[int]:
    """The numbers that follow ``magic`` at the beginning of the index at ``path``.

    Raises DataNotFoundError, or DataError when it is not such an index.
    """
    try:
        with open(path, "rb") as handle:
            header = handle.read(layout.size)
    except FileNotFoundError:
        raise DataNotFoundError(f"index file not found: {path}") from None
    if len(header) < layout.size:
        raise DataError(f"{path} is truncated: {len(header)} bytes, shorter than its header; {_REMEDY}")
    found, *numbers = layout.unpack(header)
    if found != magic:
        raise DataError(
            f"{path} is not a {kind} index (it starts with {found[:8]!r}); if it is of another kind, choose it"
            " with --dataset-impl, else preprocess the data again"
        )
    return numbers


def check_length(path: str, items: int, expected: int) -> None:
    """Raise DataError unless the index at ``path`` has the ``expected`` bytes."""
    size = os.path.getsize(path)
    if size != expected:
        state = "truncated" if size < expected else "inconsistent"
        raise DataError(f"{path} is {state}: {size} bytes, but {items} items take {expected}; {_REMEDY}")


class MMapIndex(NamedTuple):
    """A checked ``.idx``: ``sizes`` (N, int32) and ``pointers`` (N, int64, bytes) are views of the mapped file.

    The items lie one after the other from 0, as every builder writes them.
    """

    dtype: np.dtype[Any]
    sizes: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]


def read_index(path: str, bin_size: int) -> MMapIndex:
    """Map the index at ``path`` and check it against a ``.bin`` of ``bin_size`` bytes, which is not read.

    Raises DataNotFoundError, or DataError naming the file and its defect.
    """
    version, code, count = read_header(path, MMAP_HEADER, MMAP_MAGIC, "memory-mapped")
    if version != VERSION:
        raise DataError(f"{path} has index version {version}, but only version {VERSION} is known; {_REMEDY}")
    if code not in DTYPES:
        raise DataError(f"{path} names the unknown token type code {code}; {_REMEDY}")
    check_length(path, count, MMAP_HEADER.size + 12 * count)
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    raw = np.memmap(path, mode="r")
    sizes = np.frombuffer(raw, dtype="<i4", count=count, offset=MMAP_HEADER.size)
    pointers = np.frombuffer(raw, dtype="<i8", count=count, offset=MMAP_HEADER.size + 4 * count)
    end = _check_layout(path, sizes, pointers, dtype.itemsize)
    if end != bin_size:
        state = "truncated" if end > bin_size else "too long"
        raise DataError(
            f"{path.removesuffix('.idx')}.bin is {state} or does not belong to its index: it has {bin_size} bytes, but"
            f" {path} describes {end}; {_REMEDY}"
        )
    return MMapIndex(dtype, sizes, pointers)


def _check_layout(path: str, sizes: npt.NDArray[np.int32], pointers: npt.NDArray[np.int64], itemsize: int) -> int:
    """The end (bytes) of the last item. Every position is compared with the sizes before it, so one wrong number is noticed.

    Raises DataError unless the items lie one after the other.
    """
    end = 0
    for first in range(0, len(sizes), _CHECK_ITEMS):
        size = sizes[first : first + _CHECK_ITEMS]
        if int(size.min()) < 0:
            raise DataError(f"{path} is damaged: item {first + int(size.argmin())} has a negative size; {_REMEDY}")
        length = size.astype(np.int64) * itemsize
        ends = end + np.cumsum(length)
        wrong = np.flatnonzero(ends - length != pointers[first : first + _CHECK_ITEMS])
        if len(wrong):
            raise DataError(
                f"{path} is damaged: item {first + int(wrong[0])} does not begin where the one before it ends (older"
                f" versions wrote such files beyond 2 GiB with several workers); {_REMEDY}"
            )
        end = int(ends[-1])
    return end


def map_tokens(path: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The tokens of ``.bin`` as a read-only mapped array; an empty file gives an empty array. Nothing is read."""
    if os.path.getsize(path) == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray).view(dtype)


def mapped_file(tokens: npt.NDArray[Any]) -> mmap.mmap | None:
    """The file behind what `map_tokens` gives; None for an empty one."""
    owner: Any = tokens
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    return owner


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


class TntIndex(NamedTuple):
    """A checked ``.idx``: for N items ``dim_offsets`` and ``data_offsets`` (N + 1, int64), ``sizes`` (S, int64), all mapped."""

    dtype: np.dtype[Any]
    dim_offsets: npt.NDArray[np.int64]
    data_offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    @property
    def is_flat(self) -> bool:
        """Whether all items are 1-D."""
        return len(self.sizes) == len(self.data_offsets) - 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens (N) of each item: the product of its sizes."""
        if self.is_flat:
            return self.sizes
        return np.array([np.prod(self.sizes[a:b]) for a, b in pairwise(self.dim_offsets.tolist())], dtype=np.int64)


def read_tnt_index(path: str, bin_size: int) -> TntIndex:
    """Map the TNTIDX index at ``path`` and check it against a ``.bin`` of ``bin_size`` bytes, which is not read.

    Raises DataNotFoundError, or DataError naming the file and its defect.
    """
    version, code, itemsize, count, total = read_header(path, TNT_HEADER, TNT_MAGIC, "TNTIDX")
    if version != 1 or code not in DTYPES or np.dtype(DTYPES[code]).itemsize != itemsize:
        raise DataError(
            f"{path} has version {version}, token type code {code} and token size {itemsize}, which is not a known"
            " combination; preprocess the data again"
        )
    check_length(path, count, TNT_HEADER.size + 8 * (2 * (count + 1) + total))
    longs = np.memmap(path, mode="r", dtype=np.uint8)[TNT_HEADER.size :].view("<i8")
    index = TntIndex(
        np.dtype(DTYPES[code]).newbyteorder("<"),
        longs[: count + 1],
        longs[count + 1 : 2 * count + 2],
        longs[2 * count + 2 :],
    )
    _check_tnt_layout(path, index)
    described = int(index.data_offsets[-1]) * index.dtype.itemsize
    if bin_size != described:
        raise DataError(
            f"{path.removesuffix('.idx')}.bin is truncated or does not belong to its index: it has {bin_size} bytes, but"
            f" {path} describes {described}; preprocess the data again"
        )
    return index


def _check_tnt_layout(path: str, index: TntIndex) -> None:
    """Raise DataError unless positions begin at 0 and rise, and every item is as long as its sizes say."""
    what = None
    places = ((index.dim_offsets, 1), (index.data_offsets, 0))  # every item has a dimension, perhaps no token
    if any(int(offsets[0]) or bool((np.diff(offsets) < least).any()) for offsets, least in places):
        what = "its item positions do not increase"
    elif int(index.dim_offsets[-1]) != len(index.sizes) or not np.array_equal(
        index.lengths(), np.diff(index.data_offsets)
    ):
        what = "its sizes and positions disagree"
    if what:
        raise DataError(f"{path} is damaged: {what}; preprocess the data again")


def read_counts(path: str, bin_size: int) -> tuple[np.dtype[Any], int, int]:
    """(token type, items, tokens) of the index at ``path``, of either kind, whose ``.bin`` has ``bin_size`` bytes.

    Only the header is read. Raises DataError when it is not an index.
    """
    if is_tnt(path):
        _, code, _, items, _ = read_header(path, TNT_HEADER, TNT_MAGIC, "TNTIDX")
    else:
        _, code, items = read_header(path, MMAP_HEADER, MMAP_MAGIC, "memory-mapped")
    if code not in DTYPES:
        raise DataError(f"{path} names the unknown token type code {code}; {_REMEDY}")
    dtype = np.dtype(DTYPES[code])
    return dtype, items, bin_size // dtype.itemsize


def is_tnt(path: str) -> bool:
    """Whether the index at ``path`` begins like TNTIDX."""
    with open(path, "rb") as handle:
        return handle.read(len(TNT_MAGIC)) == TNT_MAGIC
