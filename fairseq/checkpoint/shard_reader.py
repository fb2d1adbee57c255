"""Reading what `fairseq.checkpoint.sharded` has written: all of it in any process, or the rows of this one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.sharded import KEY, WHOLE_STATE, Writers, first_line, put
from fairseq.errors import CheckpointError
from fairseq.file_io import size_and_checksum
from fairseq.tree import is_sharded


class _Alone(Writers):
    def __init__(self) -> None:
        super().__init__(0, 1, lambda value: [value])


def _whole(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class ShardReader:
    """How spread tensors are read.

    ``empty`` makes the tensor to read into: a plain one for all of it, a ``DTensor`` for the part of this process. Without
    it nothing is read, and the files are only compared with their checksums.
    ``readers``: the processes that read together; each checks its share of the files. ``unshared``: names of the model's
    tensors that are not spread now; where the file has one of them in parts, all of it is read.
    """

    empty: Callable[[torch.Size, torch.dtype], Tensor] | None = _whole
    readers: Writers = _Alone()
    unshared: Collection[str] = ()


WHOLE = ShardReader()
COMPARED = ShardReader(empty=None)


def own_slices(model: nn.Module, readers: Writers) -> ShardReader:
    """Each process reads its rows, as the parameters of ``model`` are spread."""
    from torch.distributed.tensor import Shard, empty

    weights: dict[str, Any] = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    mesh = next(value.device_mesh for value in weights.values() if is_sharded(value))
    return ShardReader(
        lambda shape, dtype: empty(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)]),
        readers,
        {name for name, value in weights.items() if not is_sharded(value)},
    )


def file_of(path: str) -> str:
    """The file to read for ``path``, which may be the directory of a sharded checkpoint."""
    return os.path.join(path, WHOLE_STATE) if os.path.isfile(os.path.join(path, WHOLE_STATE)) else path


def is_whole(path: str) -> bool:
    """Whether the file ``path`` holds all of a checkpoint. Raises CheckpointError when it cannot be read."""
    return KEY not in load(path, mmap=True)


def fill(state: dict[str, Any], path: str, reader: ShardReader | None) -> dict[str, Any]:
    """Read the spread tensors of the ``state`` that is stored in the file ``path``; it is then as of any other file.

    ``state`` is changed; without ``reader`` its tensors stay empty. Raises CheckpointError, in all processes that read
    together when one of them cannot.
    """
    record = state.pop(KEY, None)
    if record is None or reader is None:
        return state
    directory = _directory(record["directory"], path)
    names = list(record["files"])
    if any(_has_folder(name) for name in names):
        raise CheckpointError(f"checkpoint {path} is refused: it names files elsewhere")
    places = record["places"]
    for keys, name in places:
        if not _is_empty_at(state, keys):
            raise CheckpointError(f"checkpoint {path} is malformed: it has no place for {name}")
    readers = reader.readers
    readers.agreed(lambda: _check_files(directory, record["files"], path, names[readers.rank :: readers.size]))
    if any(keys[0] == "model" and keys[-1] in reader.unshared for keys, _ in places):
        reader = WHOLE
    make = reader.empty
    if make is None:
        return state
    tensors: dict[str, Any] = {}
    readers.agreed(lambda: tensors.update(_read(directory, {name for _, name in places}, make, path)))
    for keys, name in places:
        put(state, keys, tensors[name])
    return state


def _is_empty_at(state: Any, keys: list[Any]) -> bool:
    """Whether a tensor without numbers is there, as in what `write_shards` leaves."""
    try:
        for key in keys:
            state = state[key]
    except (LookupError, TypeError):
        return False
    return torch.is_tensor(state) and not state.numel()


def _has_folder(name: str) -> bool:
    return os.path.basename(name) != name or name in ("", ".", "..")


def _directory(name: str, path: str) -> str:
    if _has_folder(name):
        raise CheckpointError(f"checkpoint {path} is refused: it names a directory elsewhere, {name!r}")
    own = os.path.dirname(os.path.realpath(path))
    directory = os.path.join(own, name)
    if os.path.basename(path) == WHOLE_STATE and not os.path.isdir(directory):
        return own
    if not os.path.isdir(directory):
        raise CheckpointError(
            f"{path} is the small file of a sharded checkpoint, whose directory {directory} is missing: keep the two "
            "together, or make one file of them with scripts/consolidate_checkpoint.py"
        )
    return directory


def _check_files(directory: str, sums: Mapping[str, list[int]], path: str, names: list[str]) -> None:
    """Compare the files ``names`` with their checksums, and what there is with what there should be."""
    found = sorted(name for name in os.listdir(directory) if name.endswith(".safetensors"))
    if found != sorted(sums):
        odd = sorted(set(found) ^ set(sums))[0]
        what = "is missing" if odd in sums else "does not belong to it"
        raise CheckpointError(f"checkpoint {path} is damaged: {os.path.join(directory, odd)} {what}; use another one")
    strange = next((name for name in found if not os.path.isfile(os.path.join(directory, name))), None)
    if strange is not None:  # a pipe, whose reader would wait for ever
        raise CheckpointError(f"checkpoint {path} is refused: {os.path.join(directory, strange)} is not a file")
    for name in names:
        if size_and_checksum(os.path.join(directory, name)) != tuple(sums[name]):
            raise CheckpointError(f"{os.path.join(directory, name)} is truncated or damaged; use another checkpoint")


def _read(
    directory: str, names: set[str], make: Callable[[torch.Size, torch.dtype], Tensor], path: str
) -> dict[str, Tensor]:
    """The tensors in ``directory`` by name, read into what ``make`` gives."""
    import torch.distributed.checkpoint as library
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    try:
        storage = HuggingFaceStorageReader(directory)
        stored: dict[str, Any] = storage.read_metadata().state_dict_metadata
        for name in names:
            if not _is_complete(stored[name]):
                raise ValueError(f"parts of {name} are missing")
        tensors = {name: make(stored[name].size, stored[name].properties.dtype) for name in sorted(names)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is")  # each process reads for itself
            library.load(tensors, storage_reader=storage, no_dist=True)
    except OSError:
        raise
    except (
        Exception,
        library.CheckpointException,
    ) as error:  # nothing of the files is executed, but they may say anything
        raise CheckpointError(f"checkpoint {path} cannot be read: {first_line(error)}; use another one") from error
    return tensors


def _is_complete(tensor: Any) -> bool:
    """Whether the parts of a stored ``tensor`` are its rows, one after the other: new memory must not show between them."""
    end = 0
    for part in sorted((part for part in tensor.chunks if part.sizes.numel()), key=lambda part: part.offsets):
        if part.offsets != (end, *(0 for _ in tensor.size[1:])) or part.sizes[1:] != tensor.size[1:]:
            return False
        end += part.sizes[0]
    return end == tensor.size[0] or not tensor.size.numel()
