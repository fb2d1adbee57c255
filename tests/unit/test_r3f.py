"""The criterion sentence_prediction_r3f: the formula, its noise, what it logs and refuses."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fairseq.criterions import build_criterion
from fairseq.criterions.configs import SentencePredictionConfig as PlainConfig
from fairseq.criterions.configs import SentencePredictionR3FConfig
from fairseq.dataclass.build import build_config, convert_namespace_to_omegaconf
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError
from fairseq.logging import metrics
from fairseq.tasks.configs import SentencePredictionConfig
from fairseq.tasks.sentence_task import SentencePredictionTask
from tests.unit.sentences import SIZES, every_batch, fit, write_split

HEAD = "sentence_classification_head"
TEXTS = ["w00 w01", "w02", "w03 w04 w05", "w06 w07", "w08"]


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    """(task, model, a batch of five)."""
    write_split(tmp_path, "train", {"input0": TEXTS}, ["a", "b", "b", "a", "b"])
    config = SentencePredictionConfig(data=str(tmp_path), num_classes=2, init_token=0, seed=1)
    task = SentencePredictionTask.setup_task(config)
    torch.manual_seed(1)
    model = task.build_model(argparse.Namespace(arch="roberta", **SIZES))
    task.load_dataset("train")
    return task, model, every_batch(task, "train")[0]


def criterion_of(task: Any, **settings: Any) -> Any:
    return build_criterion(SentencePredictionR3FConfig(_name="sentence_prediction_r3f", **settings), task)


@pytest.mark.parametrize("noise_type", ["uniform", "normal"])
def test_the_loss_is_the_formula(parts: Any, noise_type: str) -> None:
    task, model, sample = parts
    model.train()
    torch.manual_seed(3)
    loss, sample_size, output = criterion_of(task, eps=0.5, r3f_lambda=0.7, noise_type=noise_type)(model, sample)

    tokens, shape = sample["net_input"]["src_tokens"], (5, 5, 16)
    torch.manual_seed(3)
    noise = 0.5 * torch.randn(shape) if noise_type == "normal" else torch.rand(shape) - 0.5
    clean = model.encoder.sentence_encoder.embed_tokens(tokens)
    assert clean.shape == shape
    arguments = {**sample["net_input"], "features_only": True, "classification_head_name": HEAD}
    a, b = (model(**arguments, token_embeddings=x)[0].log_softmax(-1) for x in (clean, clean.detach() + noise))
    divergence = ((a.exp() - b.exp()) * (a - b)).sum(-1).mean() * 5
    nll = F.nll_loss(a, sample["target"].view(-1), reduction="sum")
    assert float(divergence.detach()) > 1e-4 and sample_size == 5
    torch.testing.assert_close(output["symm_kl"], divergence.detach())
    torch.testing.assert_close(loss, nll + 0.7 * divergence)
    with metrics.aggregate(new_root=True) as meters:
        type(criterion_of(task)).reduce_metrics([output])
    values = meters.get_smoothed_values()
    assert values["symm_kl"] == pytest.approx(float(divergence.detach()) / 5, abs=1e-5)
    assert values["loss"] == pytest.approx(float(loss.detach()) / 5 / math.log(2), abs=1e-3) and "accuracy" in values


def test_given_token_embeddings_are_used_everywhere(parts: Any) -> None:
    _, model, sample = parts
    model.eval()
    tokens = sample["net_input"]["src_tokens"]
    clean = model.encoder.sentence_encoder.embed_tokens(tokens)
    usual = model.encoder.extract_features(tokens)[0]
    assert torch.equal(model.encoder.extract_features(tokens, token_embeddings=clean)[0], usual)
    other = model.encoder.extract_features(tokens, token_embeddings=clean + 1)[0]
    assert not torch.allclose(other, usual)
    assert torch.equal(model(tokens, features_only=True, token_embeddings=clean + 1)[0], other)


def test_evaluation_is_that_of_sentence_prediction(parts: Any) -> None:
    task, model, sample = parts
    model.eval()
    plain, r3f = build_criterion(PlainConfig(_name="sentence_prediction"), task).eval(), criterion_of(task).eval()
    (a, size, expected), (b, other, output) = plain(model, sample), r3f(model, sample)
    assert torch.equal(a, b) and size == other and "symm_kl" not in output
    assert expected.keys() == output.keys()


def test_it_learns(parts: Any) -> None:
    task, model, sample = parts
    assert fit(task, criterion_of(task), model, [sample], epochs=60) > 0.9


def test_what_is_refused(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    task, model, sample = parts
    with pytest.raises(ConfigError, match="noise_type must be one of normal, uniform"):
        criterion_of(task, noise_type="laplace")
    with pytest.raises(ConfigError, match="no classification head 'other'"):
        criterion_of(task, classification_head_name="other")(model.train(), sample)
    task.multi_label = True
    with pytest.raises(ConfigError, match="multi_label"):
        criterion_of(task)
    task.multi_label = False
    criterion_of(task, regression_target=True)
    assert "without effect" in caplog.text


def test_flags_and_yaml_mean_the_same() -> None:
    words = "data-bin --arch roberta_base --task sentence_prediction --num-classes 2 --optimizer adam --lr 0.1"
    words += " --criterion sentence_prediction_r3f --eps 1e-4 --r3f-lambda 0.5 --noise-type normal"
    by_flags = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), words.split()))
    node = {"_name": "sentence_prediction_r3f", "eps": 1e-4, "r3f_lambda": 0.5, "noise_type": "normal"}
    by_yaml = build_config({"criterion": node, "model": "roberta_base", "optimization": {"lr": [0.1]}})
    assert by_flags.criterion == by_yaml.criterion
