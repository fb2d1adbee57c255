"""The masked_lm task: batches of the reference runs, options, shards, bad input."""

import argparse
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.indexed_dataset import raise_if_valid_subsets_unintentionally_ignored
from fairseq.data.iterators import GroupedIterator
from fairseq.errors import ConfigError, DataError, DataNotFoundError, OutOfScopeError
from fairseq.tasks import TASK_REGISTRY, FairseqTask, LegacyFairseqTask, setup_task
from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.masked_lm import MaskedLMTask
from tests.common import tiny_data_bin

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


def make(data, **options):
    options = {"tokens_per_sample": 16, "seed": 1, **options}
    return MaskedLMTask.setup_task(MaskedLMConfig(data=str(data), **options))


def batches(task, split="train", **options):
    itr = task.get_batch_iterator(task.dataset(split), **{"max_sentences": 4, **options})
    return list(itr.next_epoch_itr(shuffle=False))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data_bin(tmp_path_factory.mktemp("data"))


def test_batches_are_those_of_the_reference_run():
    """Tokens and sentences of every update, as the original logged them."""
    task = make(REFERENCE / "data-bin", sample_break_mode="complete", tokens_per_sample=64, seed=7)
    task.load_dataset("train", combine=True)
    itr = task.get_batch_iterator(
        task.dataset("train"),
        max_sentences=4,
        max_positions=64,
        ignore_invalid_inputs=True,
        required_batch_size_multiple=8,
        seed=7,
    )
    groups = GroupedIterator(itr.next_epoch_itr(), 2)
    logged = json.loads((REFERENCE / "baseline" / "log.json").read_text())["train_inner"]
    for line, group in zip(logged, groups, strict=False):
        assert (sum(b["ntokens"] for b in group), sum(b["nsentences"] for b in group)) == (
            int(line["wpb"]),
            int(line["bsz"]),
        )


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc", "eos"])
def test_batch_layout(data, mode):
    task = make(data, sample_break_mode=mode)
    task.load_dataset("train")
    blocks = task._load_dataset_split("train", 1, False)
    seen = []
    for batch in batches(task):
        assert list(batch) == ["id", "net_input", "target", "nsentences", "ntokens"]
        source, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
        assert source.shape == batch["target"].shape and batch["nsentences"] == len(lengths) == len(batch["id"])
        assert isinstance(batch["ntokens"], int) and batch["ntokens"] == int(lengths.sum())
        for row, index in enumerate(batch["id"].tolist()):
            original = blocks[index]
            target = batch["target"][row, : lengths[row]]
            assert len(original) == lengths[row] and original[0] == task.dictionary.bos()
            assert torch.equal(target[target != 1], original[target != 1])
            assert (source[row, lengths[row] :] == 1).all()
            seen.append(index)
    assert sorted(seen) == list(range(len(blocks)))


def test_all_targets_are_hidden_with_only_masks(data):
    task = make(data, mask_prob=0.5, random_token_prob=0.0, leave_unmasked_prob=0.0)
    task.load_dataset("valid")
    assert task.mask_idx == task.source_dictionary.index("<mask>") == len(task.dictionary) - 1
    for batch in batches(task, "valid"):
        predicted = batch["target"] != task.dictionary.pad()
        assert torch.equal(batch["net_input"]["src_tokens"] == task.mask_idx, predicted)


@pytest.mark.parametrize("key", ["omit_mask", "omit_mask_and_pad"])
def test_omit_mask(data, key):
    cfg = types.SimpleNamespace(**{**vars(MaskedLMConfig(data=str(data), seed=1)), key: True})
    task = MaskedLMTask(cfg)
    assert "<mask>" not in task.dictionary and task.mask_idx == len(task.dictionary) == 44
    task.load_dataset("train")
    assert any((batch["net_input"]["src_tokens"] == 44).any() for batch in batches(task))


def test_nothing_masked_means_everything_predicted(data):
    task = make(data, mask_prob=0.0, include_target_tokens=True)
    task.load_dataset("train")
    for batch in batches(task):
        assert torch.equal(batch["net_input"]["src_tokens"], batch["target"])
        assert torch.equal(batch["net_input"]["target_tokens"], batch["target"])


def test_masks_change_with_the_epoch_and_order_does_not(data):
    task = make(data)
    task.load_dataset("train")
    itr = task.get_batch_iterator(task.dataset("train"), max_sentences=4, num_workers=1, data_buffer_size=2)
    first, second = (list(itr.next_epoch_itr(shuffle=False)) for _ in range(2))
    assert [b["id"].tolist() for b in first] == [b["id"].tolist() for b in second]
    assert any(not torch.equal(a["target"], b["target"]) for a, b in zip(first, second, strict=True))
    assert task.get_batch_iterator(task.dataset("train"), max_sentences=4) is itr
    assert task.get_batch_iterator(task.dataset("train"), max_sentences=4, disable_iterator_cache=True) is not itr


def test_whole_words(data):
    class Pairs:
        """Even words begin, odd ones continue."""

        def encode(self, text):
            return text

        def is_beginning_of_word(self, symbol):
            return int(symbol[1:]) % 2 == 0

    cfg = MaskedLMConfig(data=str(data), seed=1, mask_whole_words=True, mask_prob=0.4, random_token_prob=0.0)
    task = MaskedLMTask.setup_task(cfg, bpe=Pairs())
    task.load_dataset("train")
    blocks = task._load_dataset_split("train", 1, False)
    for batch in batches(task):
        for row, index in enumerate(batch["id"].tolist()):
            original, target = blocks[index], batch["target"][row]
            for t in range(1, len(original)):
                token = int(original[t])
                if token >= 4 and (token - 4) % 2:
                    assert (target[t] != 1) == (target[t - 1] != 1)
    with pytest.raises(ConfigError, match="needs --bpe"):
        MaskedLMTask.setup_task(cfg).load_dataset("train")


def test_numbered_parts_and_directories(tmp_path):
    first = tiny_data_bin(tmp_path / "a", ["train", "train1", "valid"])
    second = tiny_data_bin(tmp_path / "b", {"train": 30})
    task = make(f"{first}:{second}", sample_break_mode="eos")
    assert task.has_sharded_data("train") and not make(first).has_sharded_data("train")
    lengths = {}
    for epoch in (1, 2, 3):
        task.load_dataset("train", epoch=epoch, combine=True)
        lengths[epoch] = len(task.dataset("train"))
    assert lengths[1] == lengths[3] == 2 * len(task._load_dataset_split("train", 1, False)) > lengths[2]


def test_entrances(data):
    options = {"data": str(data), "tokens_per_sample": 16, "seed": 1}
    by_name = setup_task(MaskedLMConfig(_name="masked_lm", **options))
    flat = setup_task(argparse.Namespace(task="masked_lm", lr=[0.1], **options), bpe="gpt2")
    assert isinstance(by_name, MaskedLMTask) and flat.cfg.sample_break_mode == "none" and flat.bpe_config == "gpt2"
    assert TASK_REGISTRY["masked_lm"] is MaskedLMTask and "no_such" not in TASK_REGISTRY
    with pytest.raises(ConfigError, match="masked_lm"):
        setup_task(argparse.Namespace(task="masked_lmm", **options))
    with pytest.raises(OutOfScopeError):
        setup_task(argparse.Namespace(task="translation", **options))
    with pytest.raises(ConfigError, match="names no task"):
        setup_task(argparse.Namespace(**options))
    assert MaskedLMTask(MaskedLMConfig(**options), Dictionary()).mask_idx == 4
    assert by_name.max_positions() is None and by_name.state_dict() == {}


def test_old_tasks_do_not_meet_the_bpe_argument():
    class Old(LegacyFairseqTask):
        pass

    assert Old.setup_task(argparse.Namespace(data="x")).args.data == "x"
    with pytest.raises(ValueError, match="must derive from FairseqTask"):
        from fairseq.tasks import register_task

        register_task("not_a_task")(dict)


def test_sentences_for_inference(data):
    task = make(data)
    rows = [torch.tensor([5, 6, 2]), torch.tensor([7, 2])]
    dataset = task.build_dataset_for_inference(rows, [3, 2])
    order = dataset.ordered_indices().tolist()
    batch = dataset.collater([dataset[i] for i in order])
    assert order == [1, 0] and batch["net_input"]["src_tokens"].tolist() == [[0, 7, 2, 1], [0, 5, 6, 2]]
    assert batch["net_input"]["src_lengths"].tolist() == [3, 4] and batch["id"].tolist() == [1, 0]
    assert task.build_dataset_for_inference(rows, [3, 2], sort=False).ordered_indices().tolist() == [0, 1]


def test_missing_and_foreign_data(data, tmp_path):
    with pytest.raises(DataNotFoundError, match="data directory not found"):
        make(tmp_path / "nowhere")
    with pytest.raises(DataNotFoundError, match=r"dictionary not found.*dict.txt"):
        make(tmp_path)
    task = make(data)
    with pytest.raises(DataNotFoundError, match=r"Dataset not found: test \(.*test\)"):
        task.load_dataset("test")
    with pytest.raises(KeyError, match="Dataset not loaded: test"):
        task.dataset("test")
    small = tiny_data_bin(tmp_path / "small", ["train"])
    (small / "dict.txt").write_text("".join(f"w{i:02d} 1\n" for i in range(10)))
    with pytest.raises(DataError, match=r"only 15 symbols: dict.txt does not fit the data, or they are damaged"):
        make(small).load_dataset("train")


def test_too_long_samples(data, caplog):
    task = make(data, sample_break_mode="eos")
    task.load_dataset("train")
    dataset = task.dataset("train")
    with pytest.raises(
        DataError, match=r"Size of sample #\d+ is invalid \(=\d+\) since max_positions=5, skip this example"
    ):
        batches(task, max_positions=5)
    with caplog.at_level("WARNING"):
        kept = batches(task, max_positions=5, ignore_invalid_inputs=True)
    lengths = np.array([dataset.size(i) for i in range(len(dataset))])
    assert sum(batch["nsentences"] for batch in kept) == int((lengths <= 5).sum())
    assert f"{int((lengths > 5).sum())} samples have invalid sizes and will be skipped, max_positions=5" in caplog.text
    with pytest.raises(DataError, match="should not exceed max_tokens=5"):
        batches(task, max_sentences=None, max_tokens=5, disable_iterator_cache=True)


def guarded(data, **dataset):
    options = {
        "valid_subset": "valid",
        "ignore_unused_valid_subsets": False,
        "combine_valid_subsets": None,
        "disable_validation": False,
    }
    cfg = types.SimpleNamespace(
        dataset=types.SimpleNamespace(**{**options, **dataset}), task=types.SimpleNamespace(data=data)
    )
    raise_if_valid_subsets_unintentionally_ignored(cfg)


def test_forgotten_validation_files(tmp_path):
    tiny_data_bin(tmp_path, ["train", "valid", "valid1"])
    with pytest.raises(ConfigError, match=r"'valid1'.*--combine-val.*--ignore-unused-valid-subsets"):
        guarded(str(tmp_path))
    guarded(str(tmp_path), valid_subset="valid,valid1")
    guarded(str(tmp_path), ignore_unused_valid_subsets=True)
    guarded(str(tmp_path), combine_valid_subsets=True)
    guarded(str(tmp_path), disable_validation=True)
    guarded(None)


def test_defaults_of_a_task():
    task = FairseqTask(None)
    with pytest.raises(OutOfScopeError, match="fill_mask"):
        task.build_generator()
    task.state.add_factory("seen", list)
    task.state.seen.append(3)
    other = FairseqTask(None)
    other.load_state_dict(task.state_dict())
    assert other.state.seen == [3]
    with pytest.raises(AttributeError, match="unseen"):
        _ = other.state.unseen


def test_blocks_without_bos(data):
    """Samples of exactly tokens_per_sample tokens, straight from the text."""
    task = make(data, sample_break_mode="none", tokens_per_sample=16, prepend_bos=False)
    task.load_dataset("train")
    blocks = task._load_dataset_split("train", 1, False)
    assert set(blocks.sizes[:-1].tolist()) == {16} and task.dictionary.bos() not in torch.cat(list(blocks))
