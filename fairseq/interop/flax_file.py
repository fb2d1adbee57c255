"""``flax_model.msgpack``: nested maps with arrays as leaves, read and written without flax.

The container is MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), of which only what such a file has is
known: maps, strings, integers, arrays, bytes, booleans, extensions. An array is an extension of type 1, whose bytes are
MessagePack again: shape, name of the type, values in C order.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fairseq.errors import CheckpointError

ARRAY = 1  # the extension type of arrays
CHUNKED = "__msgpack_chunked_array__"  # marks a map that stands for an array of more than a gigabyte
_DEEPEST = 64
# First byte -> length of the size that follows it, by kind.
_STRINGS, _BYTES, _EXTENSIONS = ({first + i: 1 << i for i in range(3)} for first in (0xD9, 0xC4, 0xC7))
_FIXED_EXTENSIONS = {0xD4 + i: 1 << i for i in range(5)}
_ARRAYS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Reader:
    """Takes values off the front of ``data``. Raises CheckpointError where there is none."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 0

    def take(self, size: int) -> memoryview:
        if self.place + size > len(self.data):
            raise CheckpointError("the file is cut off: its last value is not complete")
        self.place += size
        return self.data[self.place - size : self.place]

    def size(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def value(self, depth: int = 0) -> Any:
        first = self.take(1)[0]
        if depth > _DEEPEST:
            raise CheckpointError("the file is no flax model: its maps are nested too deeply")
        if first <= 0x7F or first >= 0xE0:
            return first if first <= 0x7F else first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            form = _NUMBERS[first]
            return struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if 0xA0 <= first <= 0xBF or first in _STRINGS:
            data = self.take(first & 0x1F if first <= 0xBF else self.size(_STRINGS[first]))
            return str(data, "utf-8")
        if first in _BYTES:
            return self.take(self.size(_BYTES[first]))
        if first in _EXTENSIONS or first in _FIXED_EXTENSIONS:
            size = self.size(_EXTENSIONS[first]) if first in _EXTENSIONS else _FIXED_EXTENSIONS[first]
            kind = struct.unpack(">b", self.take(1))[0]
            return _leaf(kind, self.take(size))
        if 0x90 <= first <= 0x9F or first in _ARRAYS:
            count = first & 0xF if first <= 0x9F else self.size(_ARRAYS[first])
            return [self.value(depth + 1) for _ in range(count)]
        if first <= 0x8F or first in _MAPS:
            count = first & 0xF if first <= 0x8F else self.size(_MAPS[first])
            return {self.value(depth + 1): self.value(depth + 1) for _ in range(count)}
        raise CheckpointError(f"the file is no flax model: no value begins with the byte {first:#x}")


def _leaf(kind: int, data: memoryview) -> Tensor:
    if kind != ARRAY:
        raise CheckpointError(f"the file holds an extension of type {kind}, but only arrays (type {ARRAY}) can be read")
    shape, name, values = _Reader(data).value()
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the file holds an array of the unknown type {name!r}")
    wanted = dtype.itemsize
    for size in shape:
        wanted *= size
    if len(values) != wanted:
        raise CheckpointError(f"the file holds an array of {len(values)} bytes, but its shape {shape} wants {wanted}")
    # A copy: torch does not take read-only memory.
    return (
        torch.frombuffer(bytearray(values), dtype=dtype).reshape(shape) if wanted else torch.empty(shape, dtype=dtype)
    )


def decode_arrays(data: bytes) -> dict[str, Tensor]:
    """Path -> array of the nested maps in ``data``; the keys of a path are joined by slashes. Raises CheckpointError."""
    try:
        tree = _Reader(memoryview(data)).value()
    except (ValueError, TypeError, struct.error, RuntimeError) as error:
        raise CheckpointError(f"the file is no flax model: {error}") from None
    if not isinstance(tree, dict):
        raise CheckpointError("the file is no flax model: it does not begin with a map")
    found: dict[str, Tensor] = {}
    _flatten(tree, "", found)
    return found


def _flatten(tree: Mapping[str, Any], prefix: str, found: dict[str, Tensor]) -> None:
    if CHUNKED in tree:
        raise CheckpointError(f"{prefix.rstrip('/')} is an array of more than a gigabyte, which cannot be read")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{key}/", found)
        elif torch.is_tensor(value):
            found[f"{prefix}{key}"] = value
        else:
            raise CheckpointError(f"{prefix}{key} is no array, but {value!r:.40}")


def encode_arrays(arrays: Mapping[str, Tensor]) -> bytes:
    """The inverse of `decode_arrays`."""
    tree: dict[str, Any] = {}
    for path, value in arrays.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return b"".join(_pieces(tree))


def _pieces(value: Any) -> list[bytes]:
    """A map, sequence, string, number from 0 on, bytes or tensor in MessagePack, in the shortest form of each."""
    if torch.is_tensor(value):
        values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        data = b"".join(_pieces([list(value.shape), str(value.dtype).removeprefix("torch."), values]))
        fixed = {size: bytes([first]) for first, size in _FIXED_EXTENSIONS.items()}
        return [fixed[len(data)] if len(data) in fixed else _sized(len(data), {}, _EXTENSIONS), bytes([ARRAY]), data]
    if isinstance(value, Mapping):
        head = _sized(len(value), {0x80: 16}, _MAPS)
        return [head, *(piece for pair in value.items() for part in pair for piece in _pieces(part))]
    if isinstance(value, str):
        data = value.encode()
        return [_sized(len(data), {0xA0: 32}, _STRINGS), data]
    if isinstance(value, bytes):
        return [_sized(len(value), {}, _BYTES), value]
    if isinstance(value, Sequence):
        return [_sized(len(value), {0x90: 16}, _ARRAYS), *(piece for item in value for piece in _pieces(item))]
    return [_sized(value, {0: 128}, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8})]


def _sized(size: int, short: Mapping[int, int], firsts: Mapping[int, int]) -> bytes:
    """The beginning of a value of ``size``: in one byte, or with as many bytes for the size as it needs."""
    for first, limit in short.items():
        if size < limit:
            return bytes([first | size])
    for first, width in firsts.items():
        if size < 1 << 8 * width:
            return bytes([first]) + size.to_bytes(width, "big")
    raise CheckpointError(f"a value of {size} bytes is too long for a flax model")
