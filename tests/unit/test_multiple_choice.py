"""The tasks sentence_ranking and multiple_choice and their criterion: batches, both layouts, learning, bad input."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch

from fairseq.criterions.configs import SentenceRankingConfig as CriterionConfig
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.registry import TASKS
from fairseq.tasks import setup_task
from fairseq.tasks.configs import CommonsenseQAConfig, MultipleChoiceConfig, SentenceRankingConfig
from tests.common import tiny_dictionary
from tests.unit.sentences import SIZES, every_batch, fit, write_split

CONTEXTS = ["w00 w01 w02", "w03", "w04 w05"]
OPTIONS = [["w10", "w11 w12", "w13"], ["w14 w15 w16", "w17", "w18"]]


@pytest.fixture
def data(tmp_path):
    inputs = {"input0": CONTEXTS, "input1": OPTIONS[0], "input2": OPTIONS[1]}
    return write_split(tmp_path, "train", inputs, ["0", "1", "1"], names="")


def make(data, config=SentenceRankingConfig, name="sentence_ranking", **options):
    options = {"num_classes": 2, "init_token": 0, "separator_token": 2, "seed": 1, **options}
    return setup_task(config(_name=name, data=str(data), **options))


def build(task, **criterion):
    torch.manual_seed(1)
    model = task.build_model(argparse.Namespace(arch="roberta", **SIZES))
    classes = task.cfg.num_classes
    return model, task.build_criterion(CriterionConfig(_name="sentence_ranking", num_classes=classes, **criterion))


def row(batch, candidate, index=0):
    net_input = batch[f"net_input{candidate}"]
    return net_input["src_tokens"][index, : net_input["src_lengths"][index]].tolist()


def ids(text):
    dictionary = tiny_dictionary()
    return [{"<s>": 0, "</s>": 2}.get(word, dictionary.index(word)) for word in text.split()]


def test_candidates_come_before_the_context(data):
    task = make(data, no_shuffle=True)
    task.load_dataset("train")
    (batch,) = every_batch(task, "train")
    assert row(batch, 1) == ids("<s> w10 </s> </s> w00 w01 w02 </s>")
    assert row(batch, 2) == ids("<s> w14 w15 w16 </s> </s> w00 w01 w02 </s>")
    assert batch["target"].tolist() == [0, 1, 1]
    assert batch["nsentences"] == 3
    assert batch["ntokens"] == int(batch["net_input1"]["src_lengths"].sum())  # of the first candidate alone
    assert task.dataset("train").sizes[0].tolist() == [10, 7, 7]
    short = make(data, no_shuffle=True, max_option_length=3, shorten_method="truncate", max_positions=6)
    short.load_dataset("train")
    (batch,) = every_batch(short, "train")
    assert row(batch, 2) == ids("<s> w14 w15 </s> w00 w01")


def test_multiple_choice_may_put_the_context_first(data):
    for first in (False, True):
        task = make(data, MultipleChoiceConfig, "multiple_choice", context_first=first, no_shuffle=True)
        task.load_dataset("train")
        (batch,) = every_batch(task, "train")
        swag, race = "<s> w00 w01 w02 </s> </s> w10 </s>", "<s> w10 </s> </s> w00 w01 w02 </s>"
        assert row(batch, 1) == ids(swag if first else race)


def questions(path, count=4, choices=5, **changes):
    lines = []
    for number in range(count):
        right = number % choices
        options = [{"label": "ABCDE"[k], "text": f"w{10 + (number + k) % 5}"} for k in range(choices)]
        entry = {"answerKey": "ABCDE"[right], "question": {"stem": f"w0{number}", "choices": options}, **changes}
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n")


def test_files_of_commonsense_qa(tmp_path):
    dictionary = tiny_dictionary()
    for word in ("Q:", "A:"):
        dictionary.add_symbol(word)
    dictionary.save(str(tmp_path / "dict.txt"))
    questions(tmp_path / "train.jsonl")
    task = make(tmp_path, CommonsenseQAConfig, "commonsense_qa", num_classes=5, no_shuffle=True)
    assert TASKS.config_class("commonsense_qa")().num_classes == 5
    task.load_dataset("train")
    (batch,) = every_batch(task, "train")
    q, a = dictionary.index("Q:"), dictionary.index("A:")
    assert row(batch, 2) == [0, q, *ids("w00 </s>"), a, *ids("w11 </s>")]
    assert batch["target"].tolist() == [0, 1, 2, 3]
    questions(tmp_path / "test.jsonl", answerKey=None)
    task.load_dataset("test")
    (batch,) = every_batch(task, "test")
    assert "target" not in batch
    model, criterion = build(task)
    loss, size, output = criterion(model, batch)
    assert (float(loss.detach()), size) == (0.0, 4) and "ncorrect" not in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answerKey": "F"}, r"line 1: unknown label 'F'; expected one of A, B, C, D, E"),
        ({"answerKey": "AB"}, r"line 1: unknown label 'AB'"),
        ({"question": {"stem": "w00"}}, r"line 1: expected a JSON object with 'choices'"),
        (
            {"question": {"stem": "w00", "choices": [{"text": "w01"}]}},
            r"line 1: 'choices' must have 5 texts, but has 1",
        ),
    ],
)
def test_wrong_questions(tmp_path, changes, message):
    tiny_dictionary().save(str(tmp_path / "dict.txt"))
    questions(tmp_path / "train.jsonl", **changes)
    with pytest.raises(DataError, match=message):
        make(tmp_path, CommonsenseQAConfig, "commonsense_qa", num_classes=5).load_dataset("train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "2", "1"], r"train.label: line 2 must be the number of a choice, 0 to 1, but is '2'"),
        (["0", "x", "1"], r"line 2 must be the number of a choice"),
        (["0", "1"], r"train.label has 2 labels, fewer than the 3 lines"),
    ],
)
def test_wrong_labels_name_file_and_line(data, labels, message):
    write_split(data, "train", {}, labels, names="")
    with pytest.raises(DataError, match=message):
        make(data).load_dataset("train")


def test_missing_candidates(data):
    with pytest.raises(DataNotFoundError, match=r"Dataset not found: train .*input3"):
        make(data, num_classes=3).load_dataset("train")
    with pytest.raises(ConfigError, match="num_classes .*the number of candidates"):
        make(data, num_classes=-1)


def test_loss_is_that_of_the_softmax_over_candidates(data, tmp_path):
    task = make(data)
    task.load_dataset("train")
    (batch,) = every_batch(task, "train")
    saved = tmp_path / "predictions"
    model, criterion = build(task, save_predictions=str(saved))
    loss, sample_size, output = criterion(model, batch)
    name = "sentence_classification_head"
    logits = torch.cat([model(**batch[f"net_input{k}"], classification_head_name=name)[0] for k in (1, 2)], dim=1)
    expected = torch.nn.functional.cross_entropy(logits, batch["target"], reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (sample_size, output["nsentences"]) == (3, 3)
    rows = [line.split("\t") for line in saved.read_text().splitlines()]
    assert [int(line[0]) for line in rows] == batch["id"].tolist()
    assert [int(line[1]) for line in rows] == logits.argmax(1).tolist()
    assert [int(line[2]) for line in rows] == batch["target"].tolist()


@pytest.mark.parametrize(
    ("config", "name"), [(SentenceRankingConfig, "sentence_ranking"), (MultipleChoiceConfig, "multiple_choice")]
)
def test_a_made_set_is_learnt(tmp_path, config, name):
    """The right candidate holds one of two words."""
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 3, 48)
    inputs = {"input0": [f"w0{context}" for context in rng.integers(0, 5, 48)]}
    for k in range(3):
        inputs[f"input{k + 1}"] = [f"w{rng.integers(0, 2) + (10 if k == answer else 20)}" for answer in answers]
    write_split(tmp_path, "train", inputs, [str(answer) for answer in answers], names="")
    task = make(tmp_path, config, name, num_classes=3, max_positions=8)
    task.load_dataset("train")
    model, criterion = build(task)
    assert fit(task, criterion, model, every_batch(task, "train", 16), epochs=12, lr=1e-2) > 0.95
