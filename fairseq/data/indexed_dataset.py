"""Memory-mapped corpora as datasets, the choice of a reader or writer by name, and opening the data of a split.

Items are 1-D int64 tensors of token ids (T). The file format itself is in `fairseq.data.index_formats`.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairseq.data.concat_dataset import ConcatDataset
from fairseq.data.datasets import FairseqDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import (
    best_fitting_int_dtype,
    data_file_path,
    index_file_path,
    map_tokens,
    mapped_file,
    read_index,
    write_index,
)
from fairseq.data.legacy_index import (
    Corpus,
    CorpusBuilder,
    IndexedCachedDataset,
    IndexedDataset,
    IndexedDatasetBuilder,
    IndexedRawTextDataset,
)
from fairseq.data.manifest import check_opened
from fairseq.errors import ConfigError, DataError, DataNotFoundError, OutOfScopeError
from fairseq.file_io import split_paths

# The name under which the original logs, so that its lines keep their looks.
logger = logging.getLogger("fairseq.data.data_utils")

_IMPLS = ["raw", "lazy", "cached", "mmap"]
_REFUSED_IMPLS = ("fasta", "huffman")
_MAGICS = {b"TNTIDX\x00\x00": "cached", b"MMIDIDX\x00": "mmap", b"HUFFIDX\x00": "huffman"}


class MMapIndexedDataset(Corpus):
    """A corpus at the path prefix ``path`` (``.bin`` and ``.idx``), mapped into memory and checked on opening.

    Nothing of the corpus's size is read or copied; pickles as its path, so that workers map the same pages. Raises
    DataNotFoundError, or DataError when the two files are damaged, foreign or do not belong together.
    """

    is_contiguous = True
    """Its items lie one after the other, so `read_tokens` works."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        bin_path = data_file_path(path)
        if not os.path.isfile(bin_path):
            raise DataNotFoundError(f"data file not found: {bin_path}")
        check_opened(path)
        self.dtype, self.sizes, self._pointers = read_index(index_file_path(path), os.path.getsize(bin_path))
        self._tokens = map_tokens(bin_path, self.dtype)
        self._file = mapped_file(self._tokens)

    def __getstate__(self) -> str:
        return self._path

    def __setstate__(self, state: str) -> None:
        self.__init__(state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Item ``i`` as a new int64 tensor (T); the caller may change it."""
        start = int(self._pointers[i]) // self.dtype.itemsize
        return torch.from_numpy(self.read_tokens(start, start + int(self.sizes[i])).astype(np.int64))

    def read_tokens(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens ``[start, stop)`` of the concatenated items, in the stored type: a read-only view, no copy.

        Positions are clipped like those of a slice.
        """
        # Pages that are gone would end the process without a word.
        if self._file is not None and self._file.size() < self._tokens.nbytes:
            raise DataError(
                f"{data_file_path(self._path)} has become shorter since it was opened: leave the data alone while it is read"
            )
        return self._tokens[start:stop]


class MMapIndexedDatasetBuilder(CorpusBuilder):
    """Write a corpus item by item: `add_item` and `merge_file_` as often as wanted, then `finalize`."""

    reader = MMapIndexedDataset

    def __init__(self, out_file: str, dtype: npt.DTypeLike = np.int64) -> None:
        super().__init__(out_file, dtype)
        self._sizes = array("i")  # four bytes an item

    def add_item(self, tensor: torch.Tensor | npt.NDArray[Any]) -> None:
        tokens = np.asarray(tensor)
        self.out_file.write(tokens.astype(self.dtype).tobytes())
        self._sizes.append(tokens.size)

    def _extend_index(self, other: MMapIndexedDataset) -> None:
        self._sizes.frombytes(other.sizes.tobytes())

    def finalize(self, index_file: str) -> None:
        self.out_file.close()
        write_index(index_file, np.frombuffer(self._sizes, dtype=np.int32), self.dtype)


def infer_dataset_impl(path: str) -> str | None:
    """The kind of the dataset at the path prefix: mmap, cached, huffman, raw, fasta, or None when there is none.

    Unlike the original, ``.idx``/``.bin`` win over a text file at the prefix, and a directory there is no dataset.
    """
    if IndexedDataset.exists(path):
        with open(index_file_path(path), "rb") as handle:
            magic = handle.read(8)
        if magic not in _MAGICS:
            raise DataError(
                f"{index_file_path(path)} is not an index of a known kind (it starts with {magic!r}); it is damaged or foreign:"
                " preprocess the data again"
            )
        return _MAGICS[magic]
    if os.path.isfile(path):
        return "raw"
    return "fasta" if os.path.isfile(f"{path}.fasta") else None


def _check_impl(impl: str) -> None:
    if impl in _REFUSED_IMPLS:
        raise OutOfScopeError(
            f"--dataset-impl {impl} is out of scope; preprocess the text again with --dataset-impl mmap"
        )
    if impl not in _IMPLS:
        raise ConfigError(f"unknown --dataset-impl {impl!r}; known: {', '.join(_IMPLS)}")


def make_dataset(
    path: str, impl: str | None, fix_lua_indexing: bool = False, dictionary: Dictionary | None = None
) -> FairseqDataset | None:
    """Open the dataset at the path prefix; None when ``impl`` is given but its files are not there."""
    impl = impl or infer_dataset_impl(path)
    if impl is None:
        return None
    _check_impl(impl)
    if not (IndexedRawTextDataset if impl == "raw" else IndexedDataset).exists(path):
        return None
    if impl == "mmap":
        return MMapIndexedDataset(path)
    if impl == "raw":
        if dictionary is None:
            raise ConfigError(f"{path} is plain text (--dataset-impl raw), which needs a dictionary to be read")
        return IndexedRawTextDataset(path, dictionary)
    return (IndexedDataset if impl == "lazy" else IndexedCachedDataset)(path, fix_lua_indexing=fix_lua_indexing)


def make_builder(
    out_file: str, impl: str, vocab_size: int | None = None, dtype: npt.DTypeLike | None = None
) -> MMapIndexedDatasetBuilder | IndexedDatasetBuilder:
    """A writer for ``--dataset-impl``: mmap in the smallest type for ``vocab_size``, else TNTIDX."""
    _check_impl(impl)
    if impl == "mmap":
        return MMapIndexedDatasetBuilder(out_file, dtype=best_fitting_int_dtype(vocab_size) if dtype is None else dtype)
    if impl == "raw":
        raise ConfigError("--dataset-impl raw is a copy of the text and has no builder")
    return IndexedDatasetBuilder(out_file)


def infer_language_pair(path: str) -> tuple[str | None, str | None]:
    """(source, target) from the first file called like ``split.src-tgt.lang`` in the directory ``path``."""
    for filename in sorted(os.listdir(path)):
        parts = filename.split(".")
        if len(parts) >= 3 and len(parts[1].split("-")) == 2:
            source, target = parts[1].split("-")
            return source, target
    return None, None


def load_indexed_dataset(
    path: str,
    dictionary: Dictionary | None = None,
    dataset_impl: str | None = None,
    combine: bool = False,
    default: str = "cached",
) -> FairseqDataset | None:
    """The dataset at the path prefix ``path``; with ``combine`` also ``path1``, ``path2``, ... in one.

    ``dictionary`` is needed by plain text only. The kind is ``dataset_impl``, or read off the files, or ``default``.
    Returns None when there is nothing at ``path``. Raises DataError for damaged files.
    """
    parts: list[FairseqDataset] = []
    for k in itertools.count():
        path_k = path + (str(k) if k > 0 else "")
        impl = dataset_impl or infer_dataset_impl(path_k) or default
        part = make_dataset(path_k, impl=impl, fix_lua_indexing=True, dictionary=dictionary)
        if part is None:
            break
        logger.info("loaded %s examples from: %s", f"{len(part):,}", path_k)
        parts.append(part)
        if not combine:
            break
    if len(parts) <= 1:
        return parts[0] if parts else None
    return ConcatDataset(parts)


def _extra_valid_roots(directories: Iterable[str]) -> set[str]:
    """Names like ``valid1`` of which a data directory holds files (the original's pattern, literally)."""
    names = (name for directory in directories if os.path.isdir(directory) for name in os.listdir(directory))
    return {os.path.splitext(name)[0] for name in names if re.match(r"valid*[0-9].*", name)}


def raise_if_valid_subsets_unintentionally_ignored(train_cfg: Any) -> None:
    """Raise ConfigError when the data directories hold ``valid1``, ... that ``valid_subset`` does not name.

    ``train_cfg`` has sections ``dataset`` and ``task``. ``ignore_unused_valid_subsets``, ``combine_valid_subsets``,
    ``disable_validation`` or a task without data say that it is meant.
    """
    dataset = train_cfg.dataset
    if dataset.disable_validation or dataset.ignore_unused_valid_subsets or dataset.combine_valid_subsets:
        return
    data = getattr(train_cfg.task, "data", None)
    if not data:
        return
    ignored = _extra_valid_roots(split_paths(data)) - set(dataset.valid_subset.split(","))
    if ignored:
        raise ConfigError(
            f"valid paths {sorted(ignored)} were found in {data} but will be ignored: combine them with --combine-val, "
            "name them in --valid-subset, or pass --ignore-unused-valid-subsets"
        )
