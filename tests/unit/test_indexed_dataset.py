"""Corpora on disk: exact bytes, reading back, every kind of damage, and sizes beyond 2 GiB."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq.data import indexed_dataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.index_formats import read_index, write_index
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
    infer_language_pair,
    load_indexed_dataset,
)
from fairseq.data.legacy_index import IndexedDataset
from fairseq.errors import DataError, DataNotFoundError, OutOfScopeError

ITEMS = [[4, 5, 2], [2], [70, 2]]


def build(prefix, items=ITEMS, impl="mmap", vocab_size=100):
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl, vocab_size=vocab_size)
    for item in items:
        builder.add_item(torch.tensor(item, dtype=torch.int32))
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def test_mmap_bytes(tmp_path):
    prefix = build(tmp_path / "d")
    assert Path(f"{prefix}.bin").read_bytes().hex() == "040005000200" + "0200" + "46000200"
    assert Path(f"{prefix}.idx").read_bytes().hex() == (
        "4d4d49444944580000" + "0100000000000000" + "08" + "0300000000000000" + "03000000" + "01000000" + "02000000"
        "0000000000000000" + "0600000000000000" + "0800000000000000"
    )  # fmt: skip


def test_tntidx_bytes(tmp_path):
    prefix = build(tmp_path / "d", impl="cached")
    assert Path(f"{prefix}.bin").read_bytes().hex() == "05000000060000000300000003000000" + "4700000003000000"
    data = Path(f"{prefix}.idx").read_bytes()
    assert data[:8] == b"TNTIDX\0\0"
    assert struct.unpack("<5Q", data[8:48]) == (1, 4, 4, 3, 3)
    assert struct.unpack("<11q", data[48:]) == (0, 1, 2, 3, 0, 3, 4, 6, 3, 1, 2)


@pytest.mark.parametrize("impl", ["mmap", "lazy", "cached"])
def test_reading_back(tmp_path, impl):
    prefix = build(tmp_path / "d", impl=impl)
    data = load_indexed_dataset(prefix)
    assert data is not None and len(data) == 3
    for i, item in enumerate(ITEMS):
        assert data[i].dtype == torch.int64 and data[i].tolist() == item
    assert data[-1].tolist() == ITEMS[-1]
    with pytest.raises(IndexError):
        data[3]
    assert data.sizes.tolist() == [3, 1, 2] and data.size(2) == data.num_tokens(2) == 2
    assert data.is_contiguous and data.read_tokens(2, 5).tolist() == [2, 2, 70]
    again = pickle.loads(pickle.dumps(data))
    assert again[0].tolist() == ITEMS[0] and len(pickle.dumps(data)) < 300
    data[0].fill_(9)  # an item is the caller's own
    assert data[0].tolist() == ITEMS[0]


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.float64, np.uint16, np.uint32, np.uint64]
)
def test_every_dtype(tmp_path, dtype):
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=dtype)
    builder.add_item(torch.tensor([1, 2, 100]))
    builder.finalize(str(tmp_path / "d.idx"))
    data = MMapIndexedDataset(str(tmp_path / "d"))
    assert data[0].tolist() == [1, 2, 100] and data.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(None, np.uint32), (65499, np.uint16), (65500, np.uint32), (4294967294, np.uint32), (4294967295, np.int64)],
)
def test_best_fitting_int_dtype(vocab, dtype):
    assert indexed_dataset.best_fitting_int_dtype(vocab) is dtype


@pytest.mark.parametrize("impl", ["mmap", "cached"])
def test_merging(tmp_path, impl):
    other = build(tmp_path / "other", [[9], [8, 7]], impl)
    builder = indexed_dataset.make_builder(str(tmp_path / "d.bin"), impl, vocab_size=100)
    builder.add_item(torch.tensor([1, 2]))
    builder.merge_file_(other)
    builder.finalize(str(tmp_path / "d.idx"))
    data = load_indexed_dataset(str(tmp_path / "d"))
    assert [item.tolist() for item in data] == [[1, 2], [9], [8, 7]]
    wide = MMapIndexedDatasetBuilder(str(tmp_path / "w.bin"), dtype=np.int64)
    if impl == "mmap":
        with pytest.raises(DataError, match="cannot be appended"):
            wide.merge_file_(other)


@pytest.mark.parametrize("items", [[], [[], []]])
def test_zero_tokens(tmp_path, items):
    data = MMapIndexedDataset(build(tmp_path / "d", items))
    assert len(data) == len(items) and data.read_tokens(0, 5).tolist() == []
    assert [item.tolist() for item in data] == items


def test_positions_beyond_two_gib(tmp_path):
    """Only the index is written; the .bin is a hole of the right length, which is mapped but hardly read."""
    sizes = np.full(5, 2**30 - 7, dtype=np.int32)
    write_index(str(tmp_path / "d.idx"), sizes, np.uint16)
    with open(tmp_path / "d.bin", "wb") as handle:
        handle.truncate(5 * (2**30 - 7) * 2)
    data = MMapIndexedDataset(str(tmp_path / "d"))
    assert data._pointers.tolist() == [i * 2 * (2**30 - 7) for i in range(5)]
    assert data.read_tokens(4 * 2**30, 4 * 2**30 + 3).tolist() == [0, 0, 0]


def corrupt(path, offset, data):
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(data)


def append(path, data):
    with open(path, "ab") as handle:
        handle.write(data)


DAMAGE = {
    "empty idx": lambda p: os.truncate(f"{p}.idx", 0),
    "header only half": lambda p: os.truncate(f"{p}.idx", 20),
    "truncated idx": lambda p: os.truncate(f"{p}.idx", 50),
    "idx too long": lambda p: append(f"{p}.idx", b"x" * 12),
    "foreign idx": lambda p: corrupt(f"{p}.idx", 0, b"\x89PNG\r\n"),
    "version": lambda p: corrupt(f"{p}.idx", 9, b"\x02"),
    "dtype code": lambda p: corrupt(f"{p}.idx", 17, b"\x63"),
    "absurd count": lambda p: corrupt(f"{p}.idx", 18, b"\xff" * 8),
    "negative size": lambda p: corrupt(f"{p}.idx", 26, b"\xff\xff\xff\xff"),
    "larger size": lambda p: corrupt(f"{p}.idx", 34, b"\x03"),
    "negative pointer": lambda p: corrupt(f"{p}.idx", 46, b"\xff" * 8),
    "falling pointers": lambda p: corrupt(f"{p}.idx", 54, b"\x01"),
    "pointer past the end": lambda p: corrupt(f"{p}.idx", 54, b"\x0a"),
    "pointer inside a token": lambda p: corrupt(f"{p}.idx", 54, b"\x07"),
    "truncated bin": lambda p: os.truncate(f"{p}.bin", 10),
    "empty bin": lambda p: os.truncate(f"{p}.bin", 0),
    "bin too long": lambda p: append(f"{p}.bin", b"xx"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path, damage):
    prefix = build(tmp_path / "d")
    DAMAGE[damage](prefix)
    with pytest.raises(DataError, match=r"d\.(idx|bin)") as caught:
        load_indexed_dataset(prefix)
        MMapIndexedDataset(prefix)
    assert "preprocess" in str(caught.value)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
@pytest.mark.parametrize("length", [0, 5, 30, 60])
def test_damaged_tntidx_is_named(tmp_path, suffix, length):
    prefix = build(tmp_path / "d", impl="lazy")
    path = f"{prefix}.{suffix}"
    os.truncate(path, min(length, os.path.getsize(path) - 1))
    with pytest.raises(DataError, match=r"d\.(idx|bin)"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("impl", ["mmap", "lazy"])
def test_no_flipped_bit_of_an_index_passes(tmp_path, impl):
    """Every number of an index is there twice (sizes and positions), so each single change is noticed on opening."""
    prefix = build(tmp_path / "d", [[4, 5, 2], [7, 2], [2], [70, 71, 2]], impl)
    whole = Path(f"{prefix}.idx").read_bytes()
    silent = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        Path(f"{prefix}.idx").write_bytes(damaged)
        try:
            data = load_indexed_dataset(prefix)
        except DataError:
            continue
        if data is not None and [item.tolist() for item in data] != [[4, 5, 2], [7, 2], [2], [70, 71, 2]]:
            silent.append(bit)
    assert not silent


@pytest.mark.parametrize(
    ("offset", "layout", "values"),
    [(26, "<i", (0,)), (26 + 8, "<qq", (2, 4)), (26 + 8, "<qq", (4, 0))],
    ids=["a size of 0", "a gap", "falling positions"],
)
def test_items_out_of_line_are_refused(tmp_path, offset, layout, values):
    """No builder leaves gaps or overlaps: such an index has lost something."""
    prefix = build(tmp_path / "d", [[1, 2], [3, 4]])
    corrupt(f"{prefix}.idx", offset, struct.pack(layout, *values))
    with pytest.raises(DataError, match=r"d\.idx is damaged: item [01] does not begin"):
        MMapIndexedDataset(prefix)


def test_missing_files(tmp_path):
    assert load_indexed_dataset(str(tmp_path / "none")) is None
    with pytest.raises(DataNotFoundError, match="none.bin"):
        MMapIndexedDataset(str(tmp_path / "none"))
    with pytest.raises(DataNotFoundError):
        read_index(str(tmp_path / "none.idx"), 0)


def test_kind_is_read_off_the_files(tmp_path):
    (tmp_path / "dir").mkdir()
    assert indexed_dataset.infer_dataset_impl(str(tmp_path / "dir")) is None
    prefix = build(tmp_path / "d")
    (tmp_path / "d").mkdir()
    assert indexed_dataset.infer_dataset_impl(prefix) == "mmap"
    other = build(tmp_path / "e")
    (tmp_path / "e").write_text("some text\n")  # the original would read this
    assert indexed_dataset.infer_dataset_impl(other) == "mmap"
    (tmp_path / "h.idx").write_bytes(b"HUFFIDX\0" + bytes(50))
    (tmp_path / "h.bin").write_bytes(b"")
    with pytest.raises(OutOfScopeError, match="huffman"):
        load_indexed_dataset(str(tmp_path / "h"))


def test_raw_text(tmp_path):
    (tmp_path / "train").write_text("a b\n\nq a\n")
    dictionary = Dictionary()
    dictionary.add_symbol("a")
    data = load_indexed_dataset(str(tmp_path / "train"), dictionary)
    assert [item.tolist() for item in data] == [[4, 3, 2], [2], [3, 4, 2]]
    assert data.get_original_text(2) == "q a" and data.sizes.tolist() == [3, 1, 3]


def test_numbered_parts_are_combined(tmp_path):
    build(tmp_path / "train")
    build(tmp_path / "train1", [[9]])
    build(tmp_path / "train3", [[8]])  # not reached: there is no train2
    prefix = str(tmp_path / "train")
    assert len(load_indexed_dataset(prefix)) == 3
    both = load_indexed_dataset(prefix, combine=True)
    assert len(both) == 4 and both[3].tolist() == [9]


def test_language_pair(tmp_path):
    assert infer_language_pair(str(tmp_path)) == (None, None)
    (tmp_path / "train.in-out.in.bin").touch()
    assert infer_language_pair(str(tmp_path)) == ("in", "out")


def test_a_file_that_is_shortened_while_it_is_read(tmp_path):
    prefix = build(tmp_path / "d")
    dataset = MMapIndexedDataset(prefix)
    os.truncate(f"{prefix}.bin", 2)
    for read in (lambda: dataset[0], lambda: dataset.read_tokens(2, 4)):
        with pytest.raises(DataError, match="d.bin has become shorter"):
            read()
