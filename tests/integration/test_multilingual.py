"""The task multilingual_masked_lm: languages, their probabilities, each epoch's draw, validation by language, resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairseq.cli.train import cli_main
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.tasks.configs import MultiLingualMaskedLMConfig
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask
from tests.runs import DATA, TINY_FLAGS, train, valid, without_clocks

SIZES = {"de": 30, "en": 200, "sw": 8}
SKIP = "--skip-invalid-size-inputs-valid-test"
FLAGS = [*TINY_FLAGS, "--task", "multilingual_masked_lm", "--multilang-sampling-alpha", "0.5", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages, which are parts of one text."""
    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder, load_indexed_dataset

    root = tmp_path_factory.mktemp("languages")
    shutil.copy(DATA / "dict.txt", root / "dict.txt")
    (root / ".hidden").mkdir()
    dictionary = Dictionary.load(str(root / "dict.txt"))
    lines: Any = load_indexed_dataset(str(DATA / "train"), dictionary)
    begin = 0
    for language, count in SIZES.items():
        for split, size in (("train", count), ("valid", 10)):
            (root / language).mkdir(exist_ok=True)
            builder = MMapIndexedDatasetBuilder(str(root / language / f"{split}.bin"), dtype=np.uint16)
            for line in range(begin, begin + size):
                builder.add_item(torch.as_tensor(np.asarray(lines[line % len(lines)]).astype(np.int64)))
            builder.finalize(str(root / language / f"{split}.idx"))
            begin += size
    return root


def task_of(data: Path, **settings: Any) -> MultiLingualMaskedLMTask:
    settings = {"seed": 5, "sample_break_mode": "eos", "train_subset": "train", "tokens_per_sample": 64, **settings}
    return MultiLingualMaskedLMTask.setup_task(MultiLingualMaskedLMConfig(data=str(data), **settings))


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_is_drawn_as_in_the_original(data: Path, epoch: int) -> None:
    task = task_of(data, multilang_sampling_alpha=0.5)
    task.load_dataset("train", epoch=epoch)
    dataset: Any = task.dataset("train")

    lengths = np.array(list(SIZES.values()), dtype=float)
    smoothed = (lengths / lengths.sum()) ** 0.5
    probabilities = smoothed / smoothed.sum()
    ratios = probabilities * lengths.sum() / lengths
    assert ratios[2] > ratios[0] > 1 > ratios[1]
    begin = 0
    for number, (size, ratio) in enumerate(zip(SIZES.values(), ratios, strict=True)):
        draw = np.random.RandomState([42, 5, epoch])
        expected = draw.choice(size, int(np.ceil(size * ratio)), replace=bool(ratio >= 1))
        assert dataset.dataset.datasets[number].indices.tolist() == expected.tolist()
        assert {dataset[begin + i]["lang_id"] for i in range(len(expected))} == {number}
        begin += len(expected)
    assert len(dataset) == begin
    np.random.seed(5 + epoch)
    order = np.lexsort([np.random.permutation(begin), dataset.sizes])
    assert dataset.ordered_indices().tolist() == order.tolist()
    batch = next(iter(task.get_batch_iterator(dataset, max_sentences=8).next_epoch_itr(shuffle=False)))
    assert batch["lang_id"].shape == (8,)


def test_alpha_of_one_keeps_the_fractions(data: Path) -> None:
    task = task_of(data)
    assert task._get_sample_prob(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert task_of(data, multilang_sampling_alpha=0.0)._get_sample_prob(np.array([1.0, 3.0])).tolist() == [0.5, 0.5]


def test_languages_are_chosen_and_found(data: Path, tmp_path: Path) -> None:
    task = task_of(data, languages="sw, de")
    task.load_dataset("valid")
    assert task.validation_subsets(["valid"]) == ["valid", "valid_de", "valid_sw"]
    assert len(task.dataset("valid")) == len(task.dataset("valid_de")) + len(task.dataset("valid_sw")) == 20
    with pytest.raises(ConfigError, match="task.languages names xx, but .* has de, en, sw"):
        task_of(data, languages="de,xx").load_dataset("train")
    with pytest.raises(DataNotFoundError, match="Dataset not found: test"):
        task.load_dataset("test")
    shutil.copy(data / "dict.txt", tmp_path / "dict.txt")
    with pytest.raises(DataNotFoundError, match="no directory of a language"):
        task_of(tmp_path).load_dataset("train")


def test_runs_validate_every_language_and_go_on_exactly(data: Path, tmp_path: Path) -> None:
    whole = train(data, *FLAGS, "--max-epoch", 3, "--save-dir", "whole", cwd=tmp_path).stdout
    for words in ("sample probability by language", "up/down sampling ratio by language", "'de': 0, 'en': 1, 'sw': 2"):
        assert words in whole
    rows = [line for line in whole.splitlines() if '"valid' in line]
    for language in SIZES:
        assert sum(f'"valid_{language}_loss"' in row for row in rows) == 3
    stored = tmp_path / "whole" / "checkpoint1.pt"
    again = train(data, *FLAGS, "--max-epoch", 3, "--save-dir", "again", "--restore-file", stored, cwd=tmp_path).stdout
    expected, actual = valid(whole), valid(again)
    assert len(actual) == 2
    assert {key: without_clocks(row) for key, row in actual.items()} == {
        key: without_clocks(expected[key]) for key in actual
    }
    a, b = (torch.load(tmp_path / name / "checkpoint3.pt", weights_only=True)["model"] for name in ("whole", "again"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_yaml_and_validation_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.cli.validate import cli_main as validate

    monkeypatch.chdir(tmp_path)
    cli_main(argv=[str(data), *FLAGS, "--max-update", "1", "--languages", "de,sw"])
    results: list[str] = []
    from fairseq.training import evaluate

    judge = evaluate._evaluate_subset
    monkeypatch.setattr(
        evaluate,
        "_evaluate_subset",
        lambda *args: results.append(args[4]) or judge(*args),  # type: ignore[func-returns-value]
    )
    validate([str(data), "--path", "checkpoints/checkpoint_last.pt", "--batch-size", "4", "--cpu", SKIP])
    assert results == ["valid", "valid_de", "valid_sw"]


def test_a_language_without_targets_decides_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.training import loop

    judged: list[list[float]] = []
    judge = loop._validate_subset

    def without_swahili(*args: Any, **kwargs: Any) -> dict[str, Any]:
        stats = judge(*args, **kwargs)
        return {key: value for key, value in stats.items() if args[3] != "valid_sw" or key not in ("loss", "ppl")}

    whole = loop.validate
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "_validate_subset", without_swahili)
    monkeypatch.setattr(loop, "validate", lambda *args: judged.append(whole(*args)) or judged[-1])
    cli_main(argv=[str(data), *FLAGS, "--max-update", "1", "--languages", "de,sw"])
    assert np.isfinite(judged[0][:2]).all() and np.isnan(judged[0][2])


def test_a_shard_that_lacks_a_language_is_found_before_training(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "second")
    task = task_of(data)
    task.cfg.data = f"{data}:{tmp_path / 'second'}"
    task.check_shards("train")
    (tmp_path / "second/sw/train.idx").unlink()
    with pytest.raises(DataNotFoundError, match="sw"):
        task.check_shards("train")
