"""Cutting text at line ends: every line once, whatever the number of chunks and the kind of line end."""

from __future__ import annotations

import io
import itertools
import math

import pytest

from fairseq.data import text as chunks
from fairseq.data.pool import map_in_order
from fairseq.data.text import Chunker, find_offsets, read_blocks
from fairseq.errors import DataError, DataNotFoundError


def test_worked_example(tmp_path):
    path = tmp_path / "t"
    path.write_text("aa\nbbbb\nc\ndddddd\ne")
    assert find_offsets(path, 2) == [0, 10, 18]
    assert find_offsets(path, 3) == [0, 8, 17, 18]
    assert find_offsets(path, 5) == [0, 8, 8, 10, 17, 18]
    assert find_offsets(path, 30) == [0, *[3] * 29, 18]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "text", ["", "a", "a\n", "\n\n", "a\r\nb\rc\n\rd", "\r", "é\r\n漢字\n😀", "x\n" * 9 + "\r\n" * 4]
)
def test_every_line_once(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block)
    path = tmp_path / "t"
    path.write_bytes(text.encode())
    expected = [line.rstrip("\n") for line in io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8")]
    for n in (1, 2, 3, 10):
        offsets = find_offsets(path, n)
        assert offsets == sorted(offsets) and len(offsets) == n + 1
        parts = [list(read_blocks(path, a, b)) for a, b in zip(offsets, offsets[1:], strict=False)]
        assert [line for part in parts for lines in part for line in lines] == expected


def test_chunker_is_the_same_in_one_or_more_parts(tmp_path):
    path = tmp_path / "t"
    path.write_text("".join(f"line {i} é\n" for i in range(50)), encoding="utf-8")
    whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
    offsets = find_offsets(path, 4)
    found = []
    for start, stop in zip(offsets, offsets[1:], strict=False):
        with Chunker(path, start, stop) as lines:
            found.extend(lines)
    assert found == whole
    with Chunker(path, 0, 0) as lines:
        assert list(lines) == whole


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_chunker_with_any_line_end(tmp_path, end):
    path, wanted = tmp_path / "t", [f"{i * 7919 % 1000} é" * (i % 9) for i in range(4000)]
    path.write_bytes((end.join(wanted) + end).encode())
    offsets = find_offsets(path, 7)
    found = []
    for start, stop in zip(offsets, offsets[1:], strict=False):
        with Chunker(path, start, stop) as lines:
            found += [line.rstrip("\n") for line in lines]
    assert found == wanted


def test_bad_files(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        find_offsets(tmp_path / "nowhere", 2)
    (tmp_path / "latin").write_bytes(b"ok\ncaf\xe9\n")
    with pytest.raises(DataError, match="byte 6 is 0xe9"):
        list(read_blocks(tmp_path / "latin"))


@pytest.mark.parametrize("workers", [1, 3])
def test_map_in_order(workers):
    assert list(map_in_order(math.sqrt, [n * n for n in range(100)], workers)) == list(range(100))
    endless = map_in_order(math.sqrt, itertools.count(), workers)
    assert [next(endless), next(endless)] == [0, 1]
    with pytest.raises(ValueError, match="domain"):
        list(map_in_order(math.sqrt, [1, 2, -1, 3], workers))


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0), (b"a\r\nb\n", 0), (b"a\rb\r\nc\r", 2), (b"\r\r\n\r", 2), (b"ab\r", 1), (b"abc\r\nde\rf", 1)],
)
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_carriage_returns_alone_are_counted(tmp_path, monkeypatch, data, expected, block):
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block)
    (tmp_path / "file").write_bytes(data)
    returns = chunks.LoneReturns()
    assert all(read_blocks(tmp_path / "file", returns=returns))
    assert returns.count == expected
