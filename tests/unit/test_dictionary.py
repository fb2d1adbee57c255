"""Dictionary: rows, files, finalizing, lines and strings."""

from __future__ import annotations

import io

import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.errors import DataError, DataNotFoundError
from tests.common import tiny_dictionary


def load(text: str) -> Dictionary:
    return Dictionary.load(io.StringIO(text))


def test_specials_come_first_with_count_one():
    d = Dictionary(extra_special_symbols=["<x>"])
    assert d.symbols == ["<s>", "<pad>", "</s>", "<unk>", "<x>"]
    assert d.count == [1] * 5 and d.nspecial == 5
    assert (d.bos(), d.pad(), d.eos(), d.unk()) == (0, 1, 2, 3)


def test_without_specials():
    d = Dictionary(add_special_symbols=False)
    assert len(d) == 0 and not hasattr(d, "unk_index")
    assert Dictionary.load(io.StringIO("a 3\n"), add_special_symbols=False).indices == {"a": 0}


def test_finalize_sorts_by_count_then_symbol_and_pads():
    d = Dictionary()
    for word, n in [("b", 2), ("a", 2), ("c", 7), ("z", 1)]:
        d.add_symbol(word, n)
    d.finalize(padding_factor=8)
    assert d.symbols[4:] == ["c", "a", "b", "z"]
    d.finalize(threshold=2, padding_factor=8)
    assert d.symbols[4:] == ["c", "a", "b", "madeupword0000"] and d.count[-1] == 0
    d.finalize(nwords=5, padding_factor=1)
    assert d.symbols[4:] == ["c"]
    d.finalize(nwords=2, padding_factor=0)  # fewer than the specials
    assert len(d) == 4


def test_rows_with_unusual_symbols():
    d = load("a b 7\n 5\n  999\nx 1_0\n")
    assert d.symbols[4:] == ["a b", "", " ", "x"]
    assert d.count[4:] == [7, 5, 999, 10]


@pytest.mark.parametrize("row", ["", "one", "a b", "a 1.5", f"{'#fairseq:overwrite'}"])
def test_malformed_row_names_file_line_and_content(tmp_path, row):
    path = tmp_path / "dict.txt"
    path.write_text(f"ok 1\n{row}\nok2 1\n")
    with pytest.raises(DataError) as caught:
        Dictionary.load(str(path))
    assert str(path) in str(caught.value) and "line 2" in str(caught.value) and repr(row) in str(caught.value)


def test_duplicates_need_the_flag():
    with pytest.raises(RuntimeError, match="Duplicate"):
        load("a 1\na 2\n")
    with pytest.raises(RuntimeError, match="Duplicate"):
        load("<unk> 1\n")


def test_overwrite_moves_the_name_but_not_the_attributes_and_survives_saving(tmp_path):
    rows = (
        "<unk> 999 #fairseq:overwrite\n<s> 999 #fairseq:overwrite\n</s> 999 #fairseq:overwrite\n, 999\n\u2581de 999\n"
    )
    d = load(rows)
    assert [d.index(s) for s in ("<unk>", "<s>", "</s>", ",", "\u2581de")] == [4, 5, 6, 7, 8]
    assert d.unk() == 3 and d.index("nowhere") == 3 and d.pad() == 1
    d.save(str(tmp_path / "dict.txt"))
    again = Dictionary.load(str(tmp_path / "dict.txt"))
    assert again == d and again.symbols == d.symbols and again.count == d.count


def test_files(tmp_path, monkeypatch):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        Dictionary.load(str(tmp_path / "nowhere.txt"))
    with pytest.raises(FileNotFoundError):
        Dictionary.load(str(tmp_path / "nowhere.txt"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9 1\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        Dictionary.load(str(tmp_path / "latin.txt"))
    monkeypatch.chdir(tmp_path)
    load("a 2\nb 1\n").save("bare.txt")
    assert (tmp_path / "bare.txt").read_bytes() == b"a 2\nb 1\n"


def test_look_ups():
    d = load("a 2\n")
    assert d[4] == "a" and d[99] == "<unk>" and d[-1] == "a" and "a" in d and "b" not in d
    assert d.index("b") == d.unk()
    with pytest.raises(TypeError):
        d.index(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        hash(d)
    other = load("a 5\nb 1\n")
    d.update(other)
    assert d.symbols[4:] == ["a", "b"] and d.count[4:] == [7, 1] and d == other


def test_encode_line():
    d = load("a 2\nb 1\n")
    seen: list[tuple[str, int]] = []
    ids = d.encode_line(
        " a\u00a0b\u3000q <mask> </s>", add_if_not_exist=False, consumer=lambda w, i: seen.append((w, i)),
        masked_token="<mask>", mask_idx=77,
    )  # fmt: skip
    assert ids.dtype == torch.int32 and ids.tolist() == [4, 5, 3, 77, 2, 2]
    assert seen[3] == ("<mask>", 77)
    assert d.encode_line("b a", add_if_not_exist=False, reverse_order=True).tolist() == [4, 5, 2]
    assert d.encode_line("", append_eos=False).tolist() == []
    assert d.encode_line("new").tolist() == [6, 2] and d.symbols[6] == "new"


def test_string_joins_symbols_without_the_end():
    d = load("a@@ 2\nb 1\n")
    ids = torch.tensor([0, 4, 5, 3, 1, 2])
    assert d.string(ids) == "a@@ b <unk> <pad>"
    assert d.string(ids, bpe_symbol="@@ ", escape_unk=True) == "ab <<unk>> <pad>"
    assert d.string(ids, extra_symbols_to_ignore={1}, include_eos=True) == "a@@ b <unk> </s>"
    rows = torch.stack([ids, ids])
    assert d.string(rows, unk_string="?", separator="_") == "a@@_b_?_<pad>\na@@_b_?_<pad>"
    with pytest.raises(NotImplementedError):
        d.string(ids, bpe_symbol="nonsense")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_counting_a_file(tmp_path, workers):
    path = tmp_path / "text"
    path.write_text("b a\n\na a c\n" * 700 + "last", encoding="utf-8")
    d = Dictionary()
    Dictionary.add_file_to_dictionary(str(path), d, str.split, workers)
    d.finalize(padding_factor=1)
    assert list(zip(d.symbols[4:], d.count[4:], strict=True)) == [("a", 2100), ("b", 700), ("c", 700), ("last", 1)]
    assert d.count[d.eos()] == 1 + 2101


def test_dummy_sentence() -> None:
    dictionary = tiny_dictionary()
    torch.manual_seed(1)
    ids = dictionary.dummy_sentence(50)
    assert ids.dtype == torch.int64 and len(ids) == 50 and ids[-1] == dictionary.eos()
    assert int(ids[:-1].min()) > dictionary.nspecial and int(ids.max()) < len(dictionary)
