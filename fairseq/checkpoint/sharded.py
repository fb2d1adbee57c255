"""Checkpoints of a model that is spread over several processes: each of them writes and reads its own part.

``checkpoint_1_500.pt`` is then an ordinary, small file: every tensor that is spread (a ``DTensor``) is an empty one in it,
and its key ``shards`` says where they are: in a directory beside it, ``checkpoint_1_500.shards``, into which
`torch.distributed.checkpoint` writes safetensors files of each process. Copies of the file, ``checkpoint_last.pt``, name the
same directory, which goes when no file names it any more. So everything that is done with files (names, order, pruning,
resuming, damage) stays as it is, and the directory appears in full before a file names it. It holds the small file too,
as ``model.pt``, so that it can be moved and read alone, as any folder with a model.

Of the formats of that library this is the one without pickles: its own has them in ``.metadata``. Sizes and checksums of
the parts are in the small file, whose own are in its archive.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq.checkpoint.atomic import atomic_save, sync_directory, temporary_name
from fairseq.errors import CheckpointError
from fairseq.file_io import size_and_checksum
from fairseq.tree import is_sharded

logger = logging.getLogger(__name__)

KEY, ENDING, WHOLE_STATE = "shards", ".shards", "model.pt"
FILE_BYTES = 1 << 26  # of a file in the directory, unless a tensor has more
Keys = tuple[Any, ...]  # the way to a value in nested dictionaries and lists


@dataclass(frozen=True)
class Writers:
    """The processes of a run, which write and read together; ``gather`` gives what each of them says, by rank."""

    rank: int
    size: int
    gather: Callable[[Any], list[Any]]

    def of_first(self, value: Any) -> Any:
        """``value`` of the first process."""
        return self.gather(value if self.rank == 0 else None)[0]

    def agreed(self, action: Callable[[], Any]) -> list[Any]:
        """What ``action`` gives in each process. Raises CheckpointError in all of them when it fails in one."""
        result, failure = None, None
        try:
            result = action()
        except CheckpointError as error:
            failure = str(error)
        except OSError as error:
            failure = f"cannot read or write {error.filename or 'a checkpoint'}: {first_line(error)}"
        found = self.gather((result, failure))
        for _, failure in found:
            if failure is not None:
                raise CheckpointError(failure)
        return [result for result, _ in found]


def write_shards(state: dict[str, Any], path: str, writers: Writers) -> dict[str, Any]:
    """Write the spread tensors of ``state`` into a directory beside ``path``; returns what is left, to be stored there.

    All processes call it, and raise the same CheckpointError when one of them fails. ``state`` is changed.
    """
    start = time.perf_counter()
    found = dict(_spread(state, ()))
    places = writers.of_first([[list(keys), name] for keys, name in _named(found)])
    directory, temporary = writers.agreed(lambda: _made(path) if writers.rank == 0 else None)[0]
    try:
        tensors = {name: found[tuple(keys)] for keys, name in reversed(places)}  # the first of tied ones is last
        _save(tensors, temporary, path)
        sums = writers.agreed(lambda: _own_sums(temporary, writers.rank))
        for keys, tensor in found.items():
            put(state, keys, torch.empty(0, dtype=tensor.dtype))
        files = {name: size_and_sum for part in sums for name, size_and_sum in part.items()}
        state[KEY] = {"directory": os.path.basename(directory), "files": files, "places": places}
        writers.agreed(lambda: _finish(state, temporary, directory) if writers.rank == 0 else None)
    except BaseException:
        if writers.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    seconds = time.perf_counter() - start
    logger.info("Wrote the parts of %s processes to %s in %.3f seconds", writers.size, directory, seconds)
    return state


def _spread(value: Any, way: Keys) -> Iterator[tuple[Keys, Tensor]]:
    """The way to every spread tensor in nested dictionaries and lists."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if is_sharded(item):
            yield (*way, key), item
        else:
            yield from _spread(item, (*way, key))


def put(state: Any, keys: Sequence[Any], value: Any) -> None:
    *way, last = keys
    for key in way:
        state = state[key]
    state[last] = value


def _named(found: Mapping[Keys, Any]) -> Iterator[tuple[Keys, str]]:
    """A name for each tensor: that of the first one in the same memory."""
    names: dict[Any, str] = {}
    for keys, tensor in found.items():
        local = tensor.to_local()
        memory = (local.data_ptr(), tensor.shape, local.stride()) if local.numel() else keys
        yield keys, names.setdefault(memory, ".".join(map(str, keys)))


def _made(path: str) -> tuple[str, str]:
    """A free name for the directory of ``path``, and an empty one to be filled."""
    stem = os.path.splitext(path)[0]
    numbers = itertools.count(2)
    directory = stem + ENDING
    while os.path.lexists(directory):
        directory = f"{stem}.{next(numbers)}{ENDING}"
    temporary = temporary_name(directory)
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    return directory, temporary


def _save(tensors: dict[str, Any], directory: str, path: str) -> None:
    import torch.distributed.checkpoint as library
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(directory, _file_numbers(tensors), save_distributed=True)
    try:
        library.save(tensors, storage_writer=writer)
    except library.CheckpointException as error:
        rank = min(error.failures)
        raise CheckpointError(
            f"cannot write checkpoint {path}: process {rank}: {first_line(error)}; what was there before is untouched; "
            "free some space or choose another save_dir"
        ) from None


def _file_numbers(tensors: dict[str, Any]) -> dict[str, int]:
    """The file for each tensor: a process puts one together in memory, so that it must not get too large."""
    numbers, number, held = {}, 1, 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size() // tensor.device_mesh.size()
        if held and held + own > FILE_BYTES:
            number, held = number + 1, 0
        numbers[name], held = number, held + own
    return numbers


def first_line(error: BaseException) -> str:
    """What ``error`` says, in short; of one of `torch.distributed.checkpoint`, what the first process found that failed."""
    failures = getattr(error, "failures", None)
    if failures:
        error = failures[min(failures)][0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _own_sums(directory: str, rank: int) -> dict[str, list[int]]:
    """Sizes and checksums of what this process has written, which it sees at once wherever that is."""
    own = f"shard-{rank + 1:05d}-"
    return {
        name: list(size_and_checksum(os.path.join(directory, name)))
        for name in os.listdir(directory)
        if name.startswith(own)
    }


def _finish(state: dict[str, Any], temporary: str, directory: str) -> None:
    atomic_save(state, os.path.join(temporary, WHOLE_STATE))
    os.rename(temporary, directory)
    sync_directory(os.path.dirname(directory) or ".")


def remove_unnamed(directory: str) -> None:
    """Delete the directories of spread tensors in ``directory`` that no checkpoint there names any more."""
    names = os.listdir(directory)
    unnamed = {name for name in names if name.startswith("checkpoint") and name.endswith(ENDING)}
    if not unnamed:
        return
    for name in names:
        path = os.path.join(directory, name)
        if name.endswith(".pt") and os.path.isfile(path):
            try:
                text = _pickle_in(path)
            except OSError:  # it may name any of them
                return
            unnamed = {other for other in unnamed if other.encode("utf-8", "surrogatepass") not in text}
    for name in unnamed:
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def _pickle_in(path: str) -> bytes:
    """The bytes of the pickle in a checkpoint, for a look at the words in it; none where there is no such thing."""
    damage = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError)
    with suppress(*damage), zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    return b""
