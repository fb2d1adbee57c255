"""Data in several directories: all of them are looked at before the first update; ``:`` in the name of a directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fairseq.cli.hydra_train import resolve_paths
from fairseq.errors import DataError, DataNotFoundError
from fairseq.file_io import split_paths
from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.masked_lm import MaskedLMTask
from tests.common import run_command, tiny_data_bin
from tests.runs import TINY_FLAGS


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Directories ``a`` and ``b`` with one dictionary."""
    tiny_data_bin(tmp_path / "a", {"train": 30, "valid": 9})
    tiny_data_bin(tmp_path / "b", {"train": 20}, seed=5)
    return tmp_path


def task(data: str) -> MaskedLMTask:
    return MaskedLMTask.setup_task(MaskedLMConfig(data=data, seed=1))


def test_good_shards(shards: Path) -> None:
    built = task(f"{shards / 'a'}:{shards / 'b'}")
    built.check_shards("train")
    assert built.has_sharded_data("train") and not built.datasets
    (shards / "b" / "dict.txt").unlink()  # nothing to compare; ids beyond the dictionary are noticed all the same
    built.check_shards("train")


def spoil_dictionary(place: Path) -> None:
    lines = (place / "dict.txt").read_text().splitlines()
    (place / "dict.txt").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (shutil.rmtree, DataNotFoundError, ["data directory not found", "b", "':' separates"]),
        (lambda place: (place / "train.idx").unlink(), DataNotFoundError, ["Dataset not found: train"]),
        (lambda place: (place / "train.bin").write_bytes(b""), DataError, ["train.bin is truncated"]),
        (spoil_dictionary, DataError, ["b/dict.txt is not the dictionary of", "from symbol 5 on", "--srcdict"]),
    ],
    ids=["directory", "split", "damage", "dictionary"],
)
def test_a_bad_second_shard(shards: Path, spoil, kind, words) -> None:
    built = task(f"{shards / 'a'}:{shards / 'b'}")
    spoil(shards / "b")
    with pytest.raises(kind) as caught:
        built.check_shards("train")
    for word in words:
        assert word in str(caught.value)


def test_a_task_that_reads_its_data_otherwise_is_not_judged(shards: Path) -> None:
    class Own(MaskedLMTask):
        def load_dataset(self, split, epoch=1, combine=False, **kwargs):  # type: ignore[override]
            raise AssertionError

    Own.setup_task(MaskedLMConfig(data=f"{shards / 'a'}:{shards / 'none'}", seed=1)).check_shards("train")


def test_training_hears_of_it_before_the_first_update(shards: Path) -> None:
    spoil_dictionary(shards / "b")
    done = run_command("train", "a:b", *TINY_FLAGS, "--max-update", 2, cwd=shards, expect=2)
    assert "b/dict.txt is not the dictionary of a" in done.stderr and "loaded 9" not in done.stdout


def test_a_colon_in_the_name_of_a_directory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    (shards / "a").rename("text:2026")
    assert split_paths("text:2026") == ["text:2026"] and split_paths("text:2026:b") == ["text", "2026", "b"]
    assert split_paths("a:b") == ["a", "b"] and split_paths("s3://x:1|s3://y") == ["s3://x:1", "s3://y"]
    built = task("text:2026")
    built.load_dataset("train")
    assert not built.has_sharded_data("train")
    tree = {"task": {"data": "text:2026"}}
    monkeypatch.chdir("/")
    resolve_paths(tree, shards)
    assert tree["task"]["data"] == str(shards / "text:2026")
    with pytest.raises(DataNotFoundError, match="data directory not found: x .':' separates directories .* x:y"):
        task("x:y")
    for name in ("text", "2026"):
        (shards / name).mkdir()
    assert split_paths("text:2026", base=shards) == ["text", "2026"]
