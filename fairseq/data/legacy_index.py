"""The older corpus formats: TNTIDX (``lazy``/``cached``, a Lua heritage) and plain text (``raw``).

The layout of TNTIDX is in `fairseq.data.index_formats`; its values are ids **plus one**, which ``fix_lua_indexing`` undoes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairseq.data.datasets import SizedDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import (
    data_file_path,
    dtype_code,
    index_file_path,
    map_tokens,
    read_tnt_index,
    write_tnt_index,
)
from fairseq.data.manifest import check_opened
from fairseq.errors import DataError, DataNotFoundError


class Corpus(SizedDataset):
    """A dataset whose files may be there or not."""

    @staticmethod
    def exists(path: str) -> bool:
        return os.path.isfile(index_file_path(path)) and os.path.isfile(data_file_path(path))


class IndexedDataset(Corpus):
    """TNTIDX items as int64 tensors, read on demand from the mapped ``.bin``; pickles as its path."""

    def __init__(self, path: str, fix_lua_indexing: bool = False) -> None:
        super().__init__()
        self.path, self.fix_lua_indexing = path, fix_lua_indexing
        index_path, bin_path = index_file_path(path), data_file_path(path)
        if not self.exists(path):
            raise DataNotFoundError(f"dataset not found: {index_path} and {bin_path} must both exist")
        check_opened(path)
        index = read_tnt_index(index_path, os.path.getsize(bin_path))
        self.dtype, self.dim_offsets, self.data_offsets, self.sizes = index
        self._len, self.is_contiguous = len(index.data_offsets) - 1, index.is_flat
        self._tokens = map_tokens(bin_path, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "fix_lua_indexing": self.fix_lua_indexing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __getitem__(self, i: int) -> torch.Tensor:
        i = range(self._len)[i]  # negative ones count from the end; IndexError when out of range
        tokens = self.read_tokens(int(self.data_offsets[i]), int(self.data_offsets[i + 1]))
        shape = self.sizes[int(self.dim_offsets[i]) : int(self.dim_offsets[i + 1])]
        return torch.from_numpy(tokens.astype(np.int64)).reshape(tuple(shape.tolist()))

    def read_tokens(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens ``[start, stop)`` of the concatenated items, as a new array."""
        tokens = self._tokens[start:stop]
        return tokens - 1 if self.fix_lua_indexing else tokens.copy()

    def __len__(self) -> int:
        return self._len


class IndexedCachedDataset(IndexedDataset):
    """The ``cached`` reader. The original copies prefetched items into memory; here the mapped file is the cache."""

    @property
    def supports_prefetch(self) -> bool:
        return True

    def prefetch(self, indices: Any) -> None:
        return None


class CorpusBuilder:
    """Write a ``.bin`` from items and whole corpora of the format that ``reader`` opens; its ``.idx`` comes last."""

    reader: Callable[[str], Any]

    def __init__(self, out_file: str, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        dtype_code(self.dtype)
        self.out_file = open(out_file, "wb")  # noqa: SIM115 (closed by finalize)

    def merge_file_(self, another_file: str) -> None:
        """Append the corpus at the path prefix ``another_file``. Raises DataError when its token type differs."""
        other = self.reader(another_file)
        if other.dtype != self.dtype:
            raise DataError(f"{another_file} holds {other.dtype} tokens and cannot be appended to {self.dtype} ones")
        self._extend_index(other)
        with open(data_file_path(another_file), "rb") as handle:
            shutil.copyfileobj(handle, self.out_file, 1 << 22)

    def _extend_index(self, other: Any) -> None:
        """Take in the sizes of the corpus ``other``."""
        raise NotImplementedError


class IndexedDatasetBuilder(CorpusBuilder):
    """Write TNTIDX; items may have any number of dimensions."""

    reader = IndexedDataset

    def __init__(self, out_file: str, dtype: npt.DTypeLike = np.int32) -> None:
        super().__init__(out_file, dtype)
        self.data_offsets, self.dim_offsets, self.sizes = [0], [0], list[int]()

    def add_item(self, tensor: torch.Tensor) -> None:
        self.out_file.write((np.asarray(tensor) + 1).astype(self.dtype).tobytes())
        self.data_offsets.append(self.data_offsets[-1] + tensor.numel())
        self.sizes.extend(tensor.shape)
        self.dim_offsets.append(self.dim_offsets[-1] + len(tensor.shape))

    def _extend_index(self, other: IndexedDataset) -> None:
        self.data_offsets.extend((other.data_offsets[1:] + self.data_offsets[-1]).tolist())
        self.dim_offsets.extend((other.dim_offsets[1:] + self.dim_offsets[-1]).tolist())
        self.sizes.extend(other.sizes.tolist())

    def finalize(self, index_file: str) -> None:
        self.out_file.close()
        write_tnt_index(index_file, self.dtype, self.dim_offsets, self.data_offsets, self.sizes)


class IndexedRawTextDataset(Corpus):
    """A plain text file at exactly ``path``, encoded on opening: one item a line, held in memory."""

    def __init__(self, path: str, dictionary: Dictionary, append_eos: bool = True, reverse_order: bool = False) -> None:
        super().__init__()
        check_opened(path)
        try:
            with open(path, encoding="utf-8") as handle:
                self.lines: list[str] = [line.strip("\n") for line in handle]
        except FileNotFoundError:
            raise DataNotFoundError(f"dataset not found: {path}") from None
        except UnicodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from None
        encode = partial(
            dictionary.encode_line, add_if_not_exist=False, append_eos=append_eos, reverse_order=reverse_order
        )
        self.tokens_list: list[torch.Tensor] = [encode(line).long() for line in self.lines]
        self.sizes = np.array([len(tokens) for tokens in self.tokens_list], dtype=np.int64)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.tokens_list[i]

    def get_original_text(self, i: int) -> str:
        return self.lines[i]

    def __len__(self) -> int:
        return len(self.tokens_list)

    @staticmethod
    def exists(path: str) -> bool:
        return os.path.isfile(path)
