"""``manifest.json``: what preprocessing writes into it, and what opening data makes of it."""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from fairseq import __version__
from fairseq.cli import preprocess, preprocess_task
from fairseq.data import manifest
from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.data.inventory import describe_files
from fairseq.dataclass.parser import get_preprocessing_parser
from fairseq.errors import DataError
from fairseq.finetune.sentences import regression_targets

TEXT = "a b c\n\nb c d e\n" * 20


def run(out: Path, *words: object, text: str = TEXT) -> Path:
    source = out.parent / "text"
    source.write_text(text)
    flags = ["--only-source", "--destdir", out, *(source if word == "TEXT" else word for word in words)]
    preprocess.main(get_preprocessing_parser().parse_args([str(flag) for flag in flags]))
    return out


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(autouse=True)
def tell_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_warned", set())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("impl", ["mmap", "cached", "raw"])
def test_content(tmp_path: Path, impl: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq.data.text.LEAST_BYTES", 1)
    out = run(tmp_path / "o", "--trainpref", "TEXT", "--dataset-impl", impl, "--workers", workers)
    found = stored(out)
    assert found["version"] == 1 and found["program"] == f"fairseq {__version__}"
    files = {path.name for path in out.iterdir()} - {"manifest.json", "preprocess.log"}
    assert set(found["files"]) == files
    for name, entry in found["files"].items():
        data = (out / name).read_bytes()
        assert entry["bytes"] == len(data) and entry["crc32"] == f"{zlib.crc32(data):08x}"
    dictionary = found["files"]["dict.txt"]
    assert dictionary["symbols"] == (out / "dict.txt").read_text().count("\n")
    if impl != "raw":
        more = {"sentences": 60, "tokens": 200, "dtype": "uint16" if impl == "mmap" else "int32"}
        assert more.items() <= found["files"]["train.idx"].items()
        assert found["files"]["train.idx"]["dictionary"] == dictionary["crc32"]


def test_later_splits_are_added(tmp_path: Path) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT")
    first = stored(out)["files"]
    run(out, "--validpref", "TEXT", "--srcdict", out / "dict.txt", text="c d\n")
    second = stored(out)["files"]
    assert second.items() >= first.items() and second.keys() - first.keys() == {"valid.bin", "valid.idx"}
    (out / "train.bin").unlink()
    (out / "train.idx").unlink()
    run(out, "--testpref", "TEXT", "--srcdict", out / "dict.txt")
    assert set(stored(out)["files"]) == {"dict.txt", "test.bin", "test.idx", "valid.bin", "valid.idx"}
    assert manifest.read_manifest(out) == describe_files(out, stored(out)["files"])


def test_another_dictionary_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT")
    load_indexed_dataset(str(out / "train"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (tmp_path / "other").write_text("e 5\nd 4\nc 3\n")
    run(out, "--validpref", "TEXT", "--srcdict", tmp_path / "other")
    assert "dict.txt is replaced by another dictionary, but train beside it" in caplog.text
    caplog.clear()
    load_indexed_dataset(str(out / "valid"))
    assert "another" not in caplog.text
    load_indexed_dataset(str(out / "train"))
    assert "train was made with another dict.txt than the one" in caplog.text


@pytest.mark.parametrize("impl", ["mmap", "cached"])
@pytest.mark.parametrize("name", ["train.bin", "train.idx"])
def test_sizes_are_compared(tmp_path: Path, impl: str, name: str) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT", "--dataset-impl", impl)
    size = (out / name).stat().st_size
    (out / name).write_bytes((out / name).read_bytes()[:-4])
    with pytest.raises(DataError) as caught:
        load_indexed_dataset(str(out / "train"))
    said = str(caught.value)
    assert f"{out / name} has {size - 4:,} bytes, but manifest.json beside it says {size:,}" in said
    assert f"fairseq-validate-data {out} tells" in said and f"--write-manifest {out} accepts" in said


def test_edited_texts_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT")
    lines = (out / "dict.txt").read_text().splitlines(keepends=True)
    assert lines[-1].startswith("madeupword")
    (out / "dict.txt").write_text("".join(lines[:-2]))
    for _ in range(2):
        assert load_indexed_dataset(str(out / "train")) is not None
    assert caplog.text.count("was changed after preprocessing") == 1 and "--write-manifest" in caplog.text
    caplog.clear()
    raw = run(tmp_path / "raw", "--trainpref", "TEXT", "--dataset-impl", "raw")
    (raw / "train").write_text("a\n")
    manifest.check_opened(str(raw / "train"))
    assert "raw/train has 2 bytes" in caplog.text


def test_some_of_the_files_are_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT", "--validpref", "TEXT")
    for name in ("valid.bin", "valid.idx"):
        (out / name).unlink()
    caplog.clear()
    assert len(load_indexed_dataset(str(out / "train"))) == 60  # type: ignore[arg-type]
    (out / "manifest.json").unlink()
    (out / "dict.txt").write_text("a 1\n")
    assert load_indexed_dataset(str(out / "train")) is not None and not caplog.text.count("WARNING")


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "[" * 10**5, '{"version": 2, "files": {}}', '{"version": 1}', '{"version": 1, "files": []}',
        '{"version": 1, "files": {"a": 5}}', '{"version": 1, "files": {"a": {}}}', "\udc80",
        '{"version": 1, "files": {"../a": {"bytes": 1, "crc32": "0"}}}',
        '{"version": 1, "files": {"a": {"bytes": -1, "crc32": "0"}}}',
        '{"version": 1, "files": {"a": {"bytes": true, "crc32": "0"}}}',
        '{"version": 1, "files": {"a": {"bytes": 1, "crc32": 0}}}',
    ],
)  # fmt: skip
def test_damaged_manifests(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    out = run(tmp_path / "o", "--trainpref", "TEXT")
    (out / "manifest.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=r"manifest\.json is damaged .*--write-manifest") as caught:
        load_indexed_dataset(str(out / "train"))
    assert "\n" not in str(caught.value)
    run(out, "--validpref", "TEXT", "--srcdict", out / "dict.txt")  # adds to it
    assert "a new one is written" in caplog.text
    assert load_indexed_dataset(str(out / "valid")) and set(stored(out)["files"]) == {
        "dict.txt",
        "valid.bin",
        "valid.idx",
    }


def test_every_folder_of_a_task_has_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, text in (
        ("train.raw.input0", "a b\nc\n"),
        ("train.raw.input1", "c\nd\n"),
        ("train.label", "0.5\n0.25\n"),
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "dict.txt").write_text("a 1\nb 1\nc 1\nd 1\n")
    words = ["--task", "plain", "--data-dir", tmp_path, "--dest", tmp_path / "bin", "--srcdict", tmp_path / "dict.txt"]
    for more in ([], ["--overwrite"]):
        preprocess_task.main(
            preprocess_task.get_parser().parse_args([str(word) for word in [*words, "--regression-target", *more]])
        )
        for folder, names in (("input0", {"dict.txt", "train.bin", "train.idx"}), ("label", {"train.label"})):
            assert set(stored(tmp_path / "bin" / folder)["files"]) == names
    assert sorted(path.name for path in (tmp_path / "bin").iterdir()) == ["input0", "input1", "label"]
    regression_targets(str(tmp_path / "bin"), "train", 1, 2)
    assert not caplog.text
    (tmp_path / "bin/label/train.label").write_text("0.5\n0.2\n")
    regression_targets(str(tmp_path / "bin"), "train", 1, 2)
    assert "train.label has 8 bytes, but manifest.json beside it says 9" in caplog.text
    shutil.rmtree(tmp_path / "bin" / "label")
