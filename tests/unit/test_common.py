"""The yardstick that the numerics tests measure with."""

from __future__ import annotations

import pytest
import torch

from tests.common import assert_as_accurate_as, sentences, tiny_data_bin


def test_yardstick():
    truth = torch.linspace(-1, 1, 101, dtype=torch.float64).view(1, 101)
    eager = truth.to(torch.bfloat16)
    assert_as_accurate_as(eager, eager, truth)
    assert_as_accurate_as(truth.float(), eager, truth)
    worse = truth.clone()
    worse[0, 7] += 1.0
    with pytest.raises(AssertionError, match=r"attention at \(0, 7\): fast 0\.14.*off by 1, allowed"):
        assert_as_accurate_as(worse, eager, truth, name="attention")
    worse[0, 7] = float("nan")
    with pytest.raises(AssertionError, match="nan"):
        assert_as_accurate_as(worse, eager, truth)


def test_tiny_data(tmp_path):
    from fairseq.data.dictionary import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    data = tiny_data_bin(tmp_path / "bin", {"train": 10, "valid": 3})
    dictionary = Dictionary.load(str(data / "dict.txt"))
    corpus = MMapIndexedDataset(str(data / "train"))
    lines = sentences(10)
    assert len(corpus) == len(lines) == 11 and lines[7] == "" and corpus.sizes[7] == 1
    assert dictionary.string(corpus[0]) == lines[0]
