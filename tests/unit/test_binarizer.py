"""The binarizer classes at their old path, and the old names of file access."""

from __future__ import annotations

from collections import Counter

import pytest

from fairseq.compat.data import BinarizeSummary, FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import text
from fairseq.data.indexed_dataset import load_indexed_dataset
from fairseq.file_io import PathManager
from tests.common import tiny_dictionary


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text"
    path.write_text("w00 w01 q\n\nw39 <unk>\n" * 20)
    return path


def test_lines_become_ids_and_unknown_words_are_counted():
    binarizer = VocabularyDatasetBinarizer(tiny_dictionary())
    summary = BinarizeSummary()
    assert binarizer.binarize_line("w00 q <unk> q", summary).tolist() == [4, 3, 3, 3, 2]
    assert summary.replaced == Counter(q=2) and summary.num_tok == 5 and summary.replaced_percent == 40.0
    numbers = VocabularyDatasetBinarizer(
        tiny_dictionary(), append_eos=False, reverse_order=True, already_numberized=True
    )
    assert numbers.binarize_line("7 8 9", summary).tolist() == [9, 8, 7]
    assert str(summary) == "2 sents, 8 tokens, 25.0% replaced"


@pytest.mark.parametrize("impl", ["mmap", "cached"])
def test_files_do_not_depend_on_the_number_of_workers(tmp_path, corpus, impl, monkeypatch):
    monkeypatch.setattr(text, "LEAST_BYTES", 1)
    dictionary = tiny_dictionary()
    binarizer = VocabularyDatasetBinarizer(dictionary)
    written = []
    for workers in (1, 3):
        prefix = tmp_path / f"out{workers}"
        summary = FileBinarizer.multiprocess_dataset(
            str(corpus), impl, binarizer, str(prefix), vocab_size=len(dictionary), num_workers=workers
        )
        assert (summary.num_seq, summary.num_tok, summary.replaced) == (60, 160, Counter(q=20))
        written.append([(tmp_path / f"out{workers}.{suffix}").read_bytes() for suffix in ("bin", "idx")])
    assert written[0] == written[1]
    assert [item.tolist() for item in load_indexed_dataset(str(tmp_path / "out3"))][:3] == [
        [4, 5, 3, 2],
        [2],
        [43, 3, 2],
    ]


def test_path_manager(tmp_path):
    path = str(tmp_path / "a/b.txt")
    PathManager.mkdirs(str(tmp_path / "a"))
    PathManager.mkdirs("")
    with PathManager.open(path, "w") as handle:
        handle.write("é")
    assert PathManager.exists(path) and PathManager.isfile(path) and PathManager.ls(str(tmp_path / "a")) == ["b.txt"]
    assert PathManager.copy(path, path + "2") and not PathManager.copy(path, path + "2")
    PathManager.rename(path + "2", path)
    assert PathManager.get_local_path(path) == path
    with PathManager.opena(path, "r") as handle:
        assert handle.read() == "é"
    PathManager.rm(path)
    assert not PathManager.exists(path) and PathManager.async_close()
    with pytest.raises(NotImplementedError):
        PathManager.register_handler(None)
