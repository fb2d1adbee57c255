"""The task and criterion sentence_prediction: batches, order, shortening, losses, heads, bad input."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
import torch

from fairseq.criterions import build_criterion
from fairseq.criterions.configs import SentencePredictionConfig as CriterionConfig
from fairseq.criterions.sentences import SentencePredictionCriterion
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.logging import metrics
from fairseq.modules.task_heads import pool
from fairseq.rng import legacy_permutation
from fairseq.tasks import setup_task
from fairseq.tasks.configs import SentencePredictionConfig
from fairseq.tasks.sentence_task import SentencePredictionTask
from tests.common import tiny_dictionary
from tests.unit.sentences import SIZES, every_batch, fit, write_lines, write_split

FIRST = ["w00 w01", "w02", "w03 w04 w05", "w06 w07", "w08"]
SECOND = ["w10", "w11 w12 w13 w14", "w15", "w16", "w17 w18"]
LABELS = ["a", "b", "b", "a", "b"]


@pytest.fixture
def pairs(tmp_path):
    for split in ("train", "valid"):
        write_split(tmp_path, split, {"input0": FIRST, "input1": SECOND}, LABELS)
    return tmp_path


def make(data, **options):
    options = {"num_classes": 2, "init_token": 0, "separator_token": 2, "seed": 1, **options}
    return SentencePredictionTask.setup_task(SentencePredictionConfig(data=str(data), **options))


def build(task, criterion=None, **model):
    torch.manual_seed(1)
    built = task.build_model(argparse.Namespace(arch="roberta", **{**SIZES, **model}))
    return built, task.build_criterion(criterion or CriterionConfig(_name="sentence_prediction"))


def ids(text):
    dictionary = tiny_dictionary()
    special = {"<s>": 0, "<pad>": 1, "</s>": 2}
    return [special[word] if word in special else dictionary.index(word) for word in text.split()]


# Data


def test_examples_batches_and_order(pairs):
    task = make(pairs, max_positions=16)
    task.load_dataset("train", combine=True)
    order = legacy_permutation(5, 1)
    dataset = task.dataset("train")
    assert dataset[0]["net_input.src_tokens"].tolist() == ids("<s> w00 w01 </s> </s> w10 </s>")
    assert dataset.ordered_indices().tolist() == np.argsort(order).tolist()
    batch = every_batch(task, "train")[0]
    assert batch["id"].tolist() == np.argsort(order).tolist()
    lengths = [len(a.split()) + len(b.split()) + 4 for a, b in zip(FIRST, SECOND, strict=True)]
    assert batch["net_input"]["src_lengths"].tolist() == [lengths[i] for i in batch["id"]]
    assert (batch["nsentences"], batch["ntokens"]) == (5, sum(lengths))
    assert batch["target"].tolist() == [["ba".index(LABELS[i])] for i in batch["id"]]
    assert batch["net_input"]["src_tokens"].shape == (5, max(lengths))
    assert set(batch) == {"id", "net_input", "nsentences", "ntokens", "target"}
    assert len(task.source_dictionary) == 45 and task.label_dictionary.symbols[4:] == ["b", "a", "<mask>"]
    assert task.mask_idx == 44 and task.max_positions() == 16


def test_token_types_tell_the_second_sentence(pairs):
    task = make(pairs, max_positions=5, token_types=True, no_shuffle=True, shorten_method="truncate")
    task.load_dataset("valid")
    batch = every_batch(task, "valid")[0]["net_input"]
    assert batch["src_tokens"][0].tolist() == ids("<s> w00 w01 </s> </s>")
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1]
    assert batch["token_type_ids"][3].tolist() == [0, 0, 0, 0, 1]
    model, criterion = build(task, type_vocab_size=2)
    weight = model.encoder.sentence_encoder.embed_token_types.weight
    criterion(model, every_batch(task, "valid")[0])[0].backward()
    assert weight.shape[0] == 2 and bool((weight.grad.abs().sum(dim=1) > 0).all())
    with pytest.raises(DataError, match="the model has no token types"):
        criterion(build(task)[0], every_batch(task, "valid")[0])
    with pytest.raises(ConfigError, match="token_types and shorten_method=random_crop exclude each other"):
        make(pairs, token_types=True, shorten_method="random_crop")


def test_options_of_the_examples(pairs):
    task = make(pairs, init_token=None, separator_token=None, no_shuffle=True, add_prev_output_tokens=True)
    task.load_dataset("valid")
    batch = every_batch(task, "valid")[0]
    assert batch["id"].tolist() == [0, 1, 2, 3, 4]
    first = ids("w00 w01 </s> w10 </s>")
    assert batch["net_input"]["src_tokens"][0, :5].tolist() == first
    assert batch["net_input"]["prev_output_tokens"][0, :5].tolist() == [2, *first[:-1]]
    task = make(pairs, shorten_method="truncate", shorten_data_split_list="train", max_positions=5)
    for split, longest in (("train", 5), ("valid", 9)):
        task.load_dataset(split)
        assert int(task.dataset(split).sizes[0].max()) == longest
    crop = make(pairs, shorten_method="random_crop", max_positions=5)
    crop.load_dataset("train")
    windows = set()
    for epoch in range(1, 20):
        crop.dataset("train").set_epoch(epoch)
        windows.add(tuple(crop.dataset("train")[1]["net_input.src_tokens"].tolist()))
    assert len(windows) == 4 and all(len(window) == 5 for window in windows)


def test_masks_follow_pretraining(pairs):
    task = make(pairs, omit_mask=True)
    assert len(task.source_dictionary) == 44 and task.mask_idx == 44
    model, _ = build(task, no_token_positional_embeddings=True, encoder_alibi=True, zero_masking=True)
    assert model.encoder.sentence_encoder.embed_tokens.weight.size(0) == 44


def test_combined_splits_and_test_sets_without_labels(pairs):
    write_split(pairs, "valid1", {"input0": FIRST[:2], "input1": SECOND[:2]}, ["b", "b"])
    write_split(pairs, "test", {"input0": FIRST, "input1": SECOND}, None)
    task = make(pairs)
    for split, combine, count in (("valid", False, 5), ("valid", True, 7), ("valid1", False, 2), ("test", False, 5)):
        task.load_dataset(split, combine=combine)
        assert len(task.dataset(split)) == count
    batch = every_batch(task, "test")[0]
    assert "target" not in batch
    model, criterion = build(task)
    with pytest.raises(DataError, match="without labels"):
        criterion(model, batch)


def test_regression_targets(pairs):
    write_split(pairs, "train", {"input0": FIRST}, ["0.5 1", "1 0", "2 3", "1e-1 4", "5 5"], names="")
    task = make(pairs, regression_target=True, num_classes=2)
    assert task.label_dictionary is task.source_dictionary
    task.load_dataset("train")
    target = every_batch(task, "train")[0]["target"]
    assert target.dtype == torch.float32 and target.shape == (5, 2)


# Mistakes


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "c", "a", "b"], r"label/train: line 3: the label is not in the dictionary .*\(known: b, a\)"),
        (["a", "b"], r"label/train has 2 labels, fewer than the 5 lines"),
        (["a"] * 6, r"label/train has 6 labels, more than"),
        (["a", "b b", "b", "a", "b"], r"label/train: line 2 must hold one label, but holds 2; .*multi-label"),
        (["a", "b", "", "a", "b"], r"label/train: line 3 must hold one label, but holds 0"),
    ],
)
def test_wrong_labels_name_file_and_line(pairs, labels, message):
    write_split(pairs, "train", {}, labels)
    with pytest.raises(DataError, match=message):
        make(pairs).load_dataset("train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "2", "x", "1", "1"], r"train.label: line 3: a regression label must be a finite number, but is 'x'"),
        (["1", "2", "nan", "1", "1"], r"line 3.*finite"),
        (["1", "2 3", "1", "1", "1"], r"line 2 must hold 1 number"),
        (["1", "", "1", "1", "1"], r"line 2 must hold 1 number"),
        (["1", "2"], r"train.label has 2 labels, fewer"),
        ([], r"train.label has 0 labels, fewer"),
    ],
)
def test_wrong_numbers_name_file_and_line(pairs, labels, message):
    write_split(pairs, "train", {}, labels, names="")
    with pytest.raises(DataError, match=message):
        make(pairs, regression_target=True, num_classes=1).load_dataset("train")


def test_too_few_classes(pairs):
    with pytest.raises(DataError, match=r"the label 'a' is number 2 in .*dict.txt, but num_classes is 1"):
        make(pairs, num_classes=1).load_dataset("train")
    for wrong in (-1, 0):
        with pytest.raises(ConfigError, match="num_classes .*must be set"):
            make(pairs, num_classes=wrong)


def test_wrong_inputs(pairs, tmp_path, caplog):
    write_split(pairs, "one", {"input0": ["w00", ""], "input1": ["w01", "w02"]}, ["a", "b"])
    make(pairs).load_dataset("one")
    assert "input0/one: line 2 is empty (1 such lines)" in caplog.text
    write_split(pairs, "none", {"input0": ["w00", ""], "input1": ["w01", ""]}, ["a", "b"])
    with pytest.raises(DataError, match=r"input0/none: line 2 is empty"):
        make(pairs).load_dataset("none")
    write_split(pairs, "short", {"input0": FIRST, "input1": SECOND[:4]}, LABELS)
    with pytest.raises(DataError, match=r"input1/short has 4 lines, but .*input0/short has 5"):
        make(pairs).load_dataset("short")
    with pytest.raises(DataNotFoundError, match=r"Dataset not found: nothing"):
        make(pairs).load_dataset("nothing")
    write_lines(pairs / "input0" / "big", ["w39"], tiny_dictionary())
    (pairs / "input0" / "dict.txt").write_text("w00 1\n")
    with pytest.raises(DataError, match=r"holds the id 43, but its dictionary has only 6 symbols"):
        make(pairs).load_dataset("big")
    (pairs / "label" / "dict.txt").unlink()
    with pytest.raises(DataNotFoundError, match=r"dictionary not found: .*label/dict.txt"):
        make(pairs)
    with pytest.raises(DataNotFoundError, match="data directory not found"):
        make(pairs / "nowhere")


# Model and criterion


def test_inputs_of_two_dictionaries(pairs):
    """The ids of one of them would mean other words."""
    path = pairs / "input1" / "dict.txt"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([*others, first]) + "\n")
    with pytest.raises(DataError, match="input1/dict.txt is not the dictionary of .* the first input"):
        make(pairs).load_dataset("train")


def test_model_gets_the_tasks_positions_and_head(pairs):
    task = make(pairs, max_positions=32, classification_head_name="mine", num_classes=2)
    model, _ = build(task, max_positions=64)
    assert model.max_positions() == 32
    assert model.classification_heads["mine"].out_proj.out_features == 2
    with pytest.raises(ConfigError, match="no classification head 'sentence_classification_head'"):
        task.load_dataset("train")
        build_criterion(CriterionConfig(_name="sentence_prediction"), task)(model, every_batch(task, "train")[0])
    with pytest.raises(ConfigError, match="does not fit the task"):
        task.build_criterion(argparse.Namespace(_name="masked_lm", criterion="masked_lm"))


@pytest.mark.parametrize("kind", ["classes", "numbers", "several"])
def test_losses(pairs, kind):
    options = {
        "classes": {},
        "numbers": {"regression_target": True, "num_classes": 1},
        "several": {"multi_label": True},
    }[kind]
    if kind == "numbers":
        write_split(pairs, "train", {}, ["0", "1", "0", "1", "0"], names="")
    if kind == "several":
        write_split(pairs, "train", {}, ["a b", "b", "", "a", "b a"])
    task = make(pairs, **options)
    task.load_dataset("train")
    sample = every_batch(task, "train")[0]
    model, criterion = build(task, CriterionConfig(_name="sentence_prediction", regression_target=kind == "numbers"))
    loss, sample_size, output = criterion(model, sample)
    logits = model(**sample["net_input"], classification_head_name="sentence_classification_head")[0].double()
    target = sample["target"]
    if kind == "classes":
        expected = -float(torch.log_softmax(logits, 1).gather(1, target).sum().detach())
        assert (sample_size, output["nsentences"]) == (5, 5)
        assert int(output["ncorrect"]) == int((logits.argmax(1) == target[:, 0]).sum())
    elif kind == "numbers":
        expected = float(((logits - target) ** 2).sum().detach())
        assert sample_size == 5 and "ncorrect" not in output
    else:
        probabilities = torch.sigmoid(logits)
        decisions = target * probabilities.log() + (1 - target) * (1 - probabilities).log()
        expected = -float(decisions.sum().detach())
        assert (sample_size, output["nsentences"]) == (10, 5)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert "_scored" not in output and output["ntokens"] == sample["ntokens"]


def test_metrics_are_those_of_the_whole_set(pairs):
    """Accuracy and loss weigh sentences, the scores see every prediction, and checkpoints keep none of them."""
    task = make(pairs)
    task.load_dataset("valid")
    model, criterion = build(task)
    criterion.eval()
    with metrics.aggregate("valid"), metrics.aggregate(new_root=True, collect=True) as meters:
        for batch in every_batch(task, "valid", size=2):
            _, _, output = criterion(model, batch)
            task.reduce_metrics([output], criterion)
    values = meters.get_smoothed_values()
    task.load_dataset("valid")
    whole = every_batch(task, "valid")[0]
    assert len(whole["id"]) == 5
    logits = model(**whole["net_input"], classification_head_name="sentence_classification_head")[0]
    right = (logits.argmax(1) == whole["target"][:, 0]).float().mean()
    assert values["accuracy"] == round(100 * float(right), 1)
    nll = torch.nn.functional.cross_entropy(logits, whole["target"][:, 0]).detach()
    assert values["loss"] == pytest.approx(float(nll) / math.log(2), abs=1e-3)
    assert list(values)[:3] == ["loss", "nll_loss", "accuracy"]
    assert {"mcc", "f1", "acc_and_f1", "macro_f1"} <= set(values)
    assert "scores" not in {key for _, key, *_ in meters.state_dict()} and "scores" not in values
    assert not SentencePredictionCriterion.logging_outputs_can_be_summed()


def test_positive_label(pairs):
    write_split(pairs, "train", {}, ["0", "1", "1", "1", "0"], names="1 0")
    task = make(pairs)
    assert build(task)[1].positive == 0  # the label 1
    assert build(task, CriterionConfig(_name="sentence_prediction", positive_label="0"))[1].positive == 1
    with pytest.raises(ConfigError, match="positive_label 'x' is not a label"):
        build(task, CriterionConfig(_name="sentence_prediction", positive_label="x"))


def test_namespace_of_an_old_command_line(pairs):
    old = argparse.Namespace(
        task="sentence_prediction", data=str(pairs), num_classes=2, init_token=0, separator_token=2, seed=1,
        no_shuffle=True, regression_target=False, classification_head_name="old", max_positions=20,
    )  # fmt: skip
    task = setup_task(old)
    assert isinstance(task, SentencePredictionTask) and not task.regression_target
    assert "old" in build(task)[0].classification_heads


def test_a_made_set_is_learnt(tmp_path):
    """The second sentence decides."""
    rng = np.random.default_rng(0)
    first, second = ([f"w{word:02d}" for word in rng.integers(low, low + 4, 48)] for low in (0, 10))
    labels = ["a" if word in ("w10", "w12") else "b" for word in second]
    write_split(tmp_path, "train", {"input0": first, "input1": second}, labels)
    task = make(tmp_path, max_positions=8)
    task.load_dataset("train")
    for pooling in ("first", "masked_mean"):
        model, criterion = build(task, pooling=pooling)
        assert fit(task, criterion, model, every_batch(task, "train", 16), epochs=12, lr=1e-2) > 0.95


# Pooling


def test_poolings():
    features = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    padding = torch.tensor([[False, False, False], [False, False, True]])
    assert pool(features, "first", padding).equal(features[:, 0])
    assert pool(features, "mean", padding).equal(features.mean(dim=1))
    expected = torch.stack([features[0].mean(dim=0), features[1, :2].mean(dim=0)])
    assert pool(features, "masked_mean", padding).equal(expected)
    assert pool(features, "masked_mean").equal(features.mean(dim=1))


def test_masked_mean_does_not_depend_on_the_batch(pairs):
    task = make(pairs, max_positions=20)
    model, _ = build(task, pooling="masked_mean")
    short, long = torch.tensor([ids("<s> w01 </s>")]), torch.tensor([ids("<s> w01 </s> <pad> <pad>")])
    name = "sentence_classification_head"
    torch.testing.assert_close(
        model(short, classification_head_name=name)[0], model(long, classification_head_name=name)[0]
    )
    with pytest.raises(ConfigError, match="model.pooling must be one of"):
        build(task, pooling="max")
