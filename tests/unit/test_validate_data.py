"""``fairseq-validate-data``: every kind of damage is named, all of it, and sound data pass with and without a manifest."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairseq.cli import preprocess, preprocess_task, validate_data
from fairseq.data import validation
from fairseq.data.index_formats import read_index, write_index
from fairseq.data.item_ends import ItemEnds
from fairseq.dataclass.parser import get_preprocessing_parser
from tests.common import ROOT
from tests.downstream import GPT2, dictionary_of_ids
from tests.token_sets import squad, write_conll

LINES = ["a b c", "", "b c d e", "e"] * 25


def make(out: Path, *words: str, lines: list[str] = LINES) -> Path:
    source = out.parent / "text"
    source.write_text("".join(f"{line}\n" for line in lines))
    flags = ["--only-source", "--destdir", str(out), "--trainpref", str(source), "--validpref", str(source), *words]
    preprocess.main(get_preprocessing_parser().parse_args(flags))
    return out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "bin")


class Checked:
    """What the command printed and its status."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        capsys.readouterr()
        self.status: object = 0
        try:
            validate_data.cli_main([str(word) for word in words])
        except SystemExit as ended:
            self.status = ended.code
        self.out, self.err = capsys.readouterr()
        self.problems = [line for line in self.out.splitlines() if line.startswith("problem: ")]


@pytest.mark.parametrize("impl", ["mmap", "cached", "raw"])
def test_sound_data(tmp_path: Path, impl: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = make(tmp_path / "o", "--dataset-impl", impl)
    found = Checked(capsys, out)
    assert found.status == 0 and found.out.endswith("no problem found\n") and "note" not in found.out
    row = next(line.split() for line in found.out.splitlines() if line.split()[:1] == ["train"])
    sizes = ["100", "300", "25", "uint16" if impl == "mmap" else "int32", "8", "same"]
    assert row[1:] == (["100", "same"] if impl == "raw" else sizes)
    (out / "manifest.json").unlink()
    found = Checked(capsys, out)
    assert found.status == 0 and "has no manifest.json" in found.out


def test_files_of_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    assert Checked(capsys, ROOT / "tests/data/reference/data-bin").status == 0


def flip(path: Path, at: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def no_tokens(data: Path) -> None:
    """An empty line loses its </s>, in both files."""
    index = read_index(str(data / "train.idx"), (data / "train.bin").stat().st_size)
    tokens, sizes = np.fromfile(data / "train.bin", dtype=index.dtype), index.sizes.copy()
    write_index(str(data / "train.idx"), np.where(np.arange(len(sizes)) == 1, 0, sizes), index.dtype)
    np.delete(tokens, sizes[0]).tofile(data / "train.bin")


def as_floats(data: Path) -> None:
    index = read_index(str(data / "train.idx"), (data / "train.bin").stat().st_size)
    np.fromfile(data / "train.bin", dtype=index.dtype).astype(np.float64).tofile(data / "train.bin")
    write_index(str(data / "train.idx"), index.sizes.copy(), np.float64)


DAMAGE: list[tuple[Callable[[Path], object], str, bool]] = [
    (lambda data: flip(data / "train.bin", 0), "train.bin is not what was written: its checksum", False),
    (lambda data: flip(data / "train.bin", 1, 128), "train holds the id 327", True),
    (lambda data: cut(data / "train.bin"), "train.bin is truncated", True),
    (lambda data: cut(data / "train.idx"), "train.idx is truncated", True),
    (lambda data: flip(data / "train.idx", 0), "train.idx is not a memory-mapped index", True),
    (lambda data: flip(data / "train.idx", 17, 6), "unknown token type code 14", True),
    (as_floats, "says that tokens are float64, but ids are integers", True),
    (lambda data: flip(data / "train.idx", 26 + 4 * 100), "item 0 does not begin", True),
    (lambda data: flip(data / "train.bin", 6, 4), "item 0 does not end with </s>", True),
    (lambda data: (data / "train.bin").unlink(), "train.idx is there, but train.bin is not", True),
    (lambda data: [(data / f"valid.{end}").unlink() for end in ("bin", "idx")], "valid.bin is missing", False),
    (lambda data: (data / "dict.txt").write_text("a\n"), "incorrect dictionary format", True),
    (lambda data: (data / "dict.txt").write_text("a 1\n"), "symbols: it is damaged, or was made with another", True),
    (lambda data: (data / "dict.txt").write_text("e 9\nd 9\nc 9\nb 9\na 9\n"), "dict.txt has 20 bytes, but had", False),
    (lambda data: (data / "manifest.json").write_text("{"), "manifest.json is damaged", False),
    (no_tokens, "train: 1 items have no token", True),
]


@pytest.mark.parametrize(("damage", "said", "alone"), DAMAGE, ids=[said for _, said, _ in DAMAGE])
def test_damage_is_named(
    data: Path, damage: Callable[[Path], object], said: str, alone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(data)
    found = Checked(capsys, data)
    assert found.status == 1 and any(said in problem for problem in found.problems), found.out
    assert "Traceback" not in found.err
    shutil.rmtree(data / "manifest.json", ignore_errors=True)
    (data / "manifest.json").unlink(missing_ok=True)
    assert Checked(capsys, data).status == (1 if alone else 0)
    written = Checked(capsys, "--write-manifest", data)
    assert (written.status == 0) == (data / "manifest.json").exists() == (not alone)
    assert Checked(capsys, data).status == (1 if alone else 0)


def test_all_problems_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(data / "train.bin", 0)
    cut(data / "valid.bin")
    (data / "dict.txt").unlink()
    found = Checked(capsys, data)
    assert len(found.problems) == 4 and "4 problems" in found.out  # valid does not fit its index, nor the manifest
    assert "has no dict.txt: the ids of train are not checked" in found.out


def test_flipped_bits_and_cut_files(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    files = sorted(path.name for path in data.iterdir() if path.suffix in (".bin", ".idx", ".txt"))
    for number in range(60):
        broken = tmp_path / f"broken{number}"
        shutil.copytree(data, broken)
        path = broken / rng.choice(files)
        flip(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))
        found = Checked(capsys, broken)
        assert found.status == 1 and any(path.name in problem for problem in found.problems), (path, found.out)


def test_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "killed/.preprocess-a").mkdir(parents=True)
    for words, said in (
        ([tmp_path], "has no preprocessed data"),
        ([tmp_path / "x"], "data directory not found"),
        ([tmp_path / "file"], "is a file; give the directory"),
        ([tmp_path / "killed"], "give the command again"),
    ):
        found = Checked(capsys, *words)
        assert found.status == 2 and said in found.err and found.err.count("\n") == 1


def test_folders_that_are_links(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked = tmp_path / "task"
    linked.mkdir()
    (linked / "input0").symlink_to(data)
    (linked / "around").symlink_to(linked)
    found = Checked(capsys, linked)
    assert found.status == 0 and found.out.count(" MB)") == 1
    (data / "train.bin").write_bytes(b"")
    assert Checked(capsys, linked).status == 1


def test_edited_dictionary_and_left_out_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (data / "dict.txt").read_text().splitlines(keepends=True)
    (data / "dict.txt").write_text("".join(lines[:-2]))  # madeupword
    for name in ("valid.bin", "valid.idx"):
        (data / name).unlink()
    found = Checked(capsys, data)
    assert len(found.problems) == 3 and "below a line that was added, removed or moved" in found.problems[0]
    assert found.out.endswith(f"or accept it with fairseq-validate-data --write-manifest {data}\n")
    assert Checked(capsys, "--write-manifest", data).status == 0
    assert Checked(capsys, data).status == 0
    assert set(json.loads((data / "manifest.json").read_text())["files"]) == {"dict.txt", "train.bin", "train.idx"}


def test_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", "--srcdict", str(one / "dict.txt"), lines=["a b"])
    assert Checked(capsys, f"{one}:{two}").status == 0
    other = make(tmp_path / "other", lines=["x y z"])
    found = Checked(capsys, f"{one}:{two}:{other}")
    assert found.status == 1 and "dict.txt is not the dictionary of" in found.problems[0] and len(found.problems) == 1
    assert Checked(capsys, one, other).status == 0  # have nothing to do with each other
    (two / "manifest.json").unlink()
    lines = (two / "dict.txt").read_text().splitlines(keepends=True)
    (two / "dict.txt").write_text("".join(lines[:-1]))
    assert "they differ from symbol" in Checked(capsys, f"{one}:{two}").problems[0]


def task(tmp_path: Path, name: str, *more: object) -> Path:
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in "a b c d".split()))
    words = ["--task", name, "--data-dir", tmp_path, "--dest", tmp_path / "bin", "--srcdict", tmp_path / "dict.txt"]
    words += more
    preprocess_task.main(preprocess_task.get_parser().parse_args([str(word) for word in words]))
    return tmp_path / "bin"


def test_labels_and_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("train.raw.input0", "a b\nc\n"), ("train.raw.input1", "c\nd\n"), ("train.label", "x\ny\n")):
        (tmp_path / name).write_text(text)
    data = task(tmp_path, "plain")
    assert Checked(capsys, data).status == 0
    for folder in ("input1", "label"):
        source = tmp_path / "one"
        source.write_text("c\n" if folder == "input1" else "x\n")
        flags = ["--only-source", "--destdir", data / folder, "--trainpref", source]
        words = [str(word) for word in [*flags, "--srcdict", data / folder / "dict.txt"]]
        preprocess.main(get_preprocessing_parser().parse_args(words))
    found = Checked(capsys, data)
    assert [problem.split()[1:5] for problem in found.problems] == [
        [str(data / "label" / "train"), "has", "1", "lines,"],
        [str(data / "input1" / "train"), "has", "1", "lines,"],
    ]


@pytest.mark.parametrize("name", ["squad", "conll"])
def test_columns_of_other_tasks(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "squad":
        (tmp_path / "train-v1.1.json").write_text(json.dumps(squad(8, seed=1)))
    else:
        write_conll(tmp_path)
    data = task(tmp_path, name, *GPT2, "--srcdict", dictionary_of_ids(tmp_path / "ids"))
    found = Checked(capsys, data)
    assert found.status == 0 and "note" not in found.out, found.out
    path = data / "input0" / "train.jsonl" if name == "conll" else data / "label" / "train.jsonl"
    path.write_text(path.read_text() + "{}\n")
    assert Checked(capsys, data).status == 1
    (path.parent / "manifest.json").unlink()
    assert Checked(capsys, data).status == 1


def test_small_blocks_give_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = validation.check_folder(data, lambda count: None)
    monkeypatch.setattr(validation, "_BLOCK", 16)
    monkeypatch.setattr("fairseq.data.item_ends._ITEMS", 3)
    assert validation.check_folder(data, lambda count: None) == whole


def test_item_ends() -> None:
    ends = ItemEnds(np.array([0, 2, 0, 0, 1, 3, 0]))
    assert [part.tolist() for part in ends.before(2)] == [[1], [1]]
    assert [part.tolist() for part in ends.before(5)] == [[4], [2]]
    assert [part.tolist() for part in ends.before(7)] == [[5], [5]]
    assert (ends.none, ends.empty) == (4, 1)
