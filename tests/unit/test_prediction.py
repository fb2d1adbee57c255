"""Predictions: every kind of head, any order and batch size, raw texts as binarized ones, and mistakes."""

from __future__ import annotations

import argparse

import pytest
import torch

from fairseq.cli.predict import Predictor
from fairseq.data.dictionary import Dictionary
from fairseq.errors import ConfigError, DataError
from fairseq.models import build_model
from fairseq.models.roberta import RobertaHubInterface
from fairseq.tasks.choices import MultipleChoiceTask, SentenceRankingTask
from fairseq.tasks.configs import MultipleChoiceConfig, SentencePredictionConfig, SentenceRankingConfig
from fairseq.tasks.sentence_task import SentencePredictionTask
from tests.common import tiny_dictionary
from tests.unit.roberta import SIZES

HEAD = "sentence_classification_head"
TEXTS = ["w01", "w02 w03 w04 w05 w06", "w07 w08", "w09 w10 w11 w12", "w13 w14 w15 w16 w17 w18 w19"]


def labels(*names):
    dictionary = Dictionary()
    for name in names:
        dictionary.add_symbol(name)
    return dictionary


def hub(task, outputs=None):
    """A small model with a head whose weights are far from uniform."""
    torch.manual_seed(1)
    model = build_model(argparse.Namespace(arch="roberta", **SIZES), task)
    model.register_classification_head(HEAD, num_classes=task.cfg.num_classes if outputs is None else outputs)
    for parameter in model.classification_heads.parameters():
        torch.nn.init.normal_(parameter, std=1.5)
    return RobertaHubInterface(argparse.Namespace(), task, model, bpe=None)


def prediction_hub(**values):
    settings = {"num_classes": 3, "init_token": 0, "separator_token": 2, "max_positions": 16, **values}
    cfg = SentencePredictionConfig(data="nowhere", classification_head_name=HEAD, seed=1, **settings)
    return hub(SentencePredictionTask(cfg, tiny_dictionary(), labels("good", "bad", "fair")))


def logits(interface, text):
    interface.eval()
    ids = interface.task.dictionary.encode_line(text, append_eos=False, add_if_not_exist=False).long()
    with torch.no_grad():
        return interface.predict(HEAD, ids, return_logits=True)[0]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_classes_in_the_order_of_the_file(batch_size):
    interface = prediction_hub()
    predictor = Predictor(interface, batch_size=batch_size)
    seen = []
    answers = predictor.predict_texts([(text,) for text in TEXTS], seen.append)
    assert sum(seen) == len(TEXTS) and max(seen) <= batch_size
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = torch.softmax(logits(interface, f"<s> {text} </s>"), dim=0)
        assert answer.value == ["good", "bad", "fair"][int(expected.argmax())]
        assert answer.probability == pytest.approx(float(expected.max()), abs=1e-5)
        assert list(answer.probabilities) == ["good", "bad", "fair"]
        assert sum(answer.probabilities.values()) == pytest.approx(1.0)


def test_pairs_are_joined_as_in_training():
    for separator, joined in ((2, "<s> w01 </s> </s> w02 w03 </s>"), (None, "<s> w01 </s> w02 w03 </s>")):
        interface = prediction_hub(separator_token=separator)
        answer = Predictor(interface).predict_texts([("w01", " w02 w03 ")])[0]
        expected = torch.softmax(logits(interface, joined), dim=0)
        assert answer.probability == pytest.approx(float(expected.max()), abs=1e-5)


def test_several_labels():
    interface = prediction_hub(multi_label=True)
    predictor = Predictor(interface)
    assert predictor.reader.kind == "sets"
    for text, answer in zip(TEXTS, predictor.predict_texts([(text,) for text in TEXTS]), strict=True):
        expected = logits(interface, f"<s> {text} </s>")
        assert answer.value == [name for name, x in zip(("good", "bad", "fair"), expected, strict=True) if x > 0]
        assert answer.probability is None and set(answer.probabilities) == {"good", "bad", "fair"}


@pytest.mark.parametrize("count", [1, 2])
def test_numbers(count):
    interface = prediction_hub(num_classes=count, regression_target=True)
    answers = Predictor(interface).predict_texts([(text,) for text in TEXTS])
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = logits(interface, f"<s> {text} </s>").tolist()
        assert answer.value == pytest.approx(expected[0] if count == 1 else expected, abs=1e-5)
        assert answer.probabilities is None


@pytest.mark.parametrize(
    ("task", "config", "joined"),
    [
        (SentenceRankingTask, SentenceRankingConfig, "<s> {choice} </s> </s> w01 w02 </s>"),
        (MultipleChoiceTask, MultipleChoiceConfig, "<s> {choice} </s> </s> w01 w02 </s>"),
    ],
)
def test_choices(task, config, joined):
    values = {"num_classes": 3, "init_token": 0, "separator_token": 2, "max_positions": 16, "seed": 1}
    interface = hub(task(config(data="nowhere", ranking_head_name=HEAD, **values), tiny_dictionary()), outputs=1)
    rows = [("w01 w02", "w03", "w04 w05 w06", "w07"), ("w01 w02", "w08 w09", "w10", "w11 w12 w13")]
    for row, answer in zip(rows, Predictor(interface, batch_size=1).predict_texts(rows), strict=True):
        scores = torch.cat([logits(interface, joined.format(choice=choice)) for choice in row[1:]])
        assert answer.value == int(scores.argmax())
        expected = torch.softmax(scores, dim=0).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="an example of this model has 4 texts, but 2 are given"):
        Predictor(interface).predict_texts([("w01", "w02")])


def test_long_examples_are_cut():
    interface = prediction_hub()
    predictor = Predictor(interface)
    words = [f"w{k % 40:02d}" for k in range(30)]
    answer = predictor.predict_texts([(" ".join(words),), ("w01",)])[0]
    expected = torch.softmax(logits(interface, "<s> " + " ".join(words[:15])), dim=0)
    assert predictor.reader.shortened == 1
    assert answer.probability == pytest.approx(float(expected.max()), abs=1e-5)


def test_heads():
    interface = prediction_hub()
    interface.register_classification_head("other", num_classes=2)
    other = Predictor(interface, "other")
    assert other.reader.labels == ["0", "1"]  # the dictionary names other classes
    with pytest.raises(ConfigError, match=f"no head missing; its heads are {HEAD}, other"):
        Predictor(interface, "missing")
    with pytest.raises(ConfigError, match="at least 1"):
        Predictor(interface, batch_size=0)
    interface.model.classification_heads.clear()
    with pytest.raises(ConfigError, match="no head to predict with: fine-tune it on a task first"):
        Predictor(interface)
    interface.model.register_token_head(HEAD, 3)
    with pytest.raises(ConfigError, match="works on single tokens"):
        Predictor(interface)
