"""The masked-LM loss, its reduction, and how criterions are built."""

from __future__ import annotations

import argparse
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from fairseq.criterions import FairseqCriterion, LegacyFairseqCriterion, build_criterion, register_criterion
from fairseq.criterions.masked_lm import MaskedLmLoss, perplexity
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.logging import metrics
from fairseq.registry import CRITERIONS
from tests.unit.roberta import PAD, Task, small_model, some_tokens, without_dropout


def sample(tokens, masked):
    target = torch.where(masked, tokens, torch.full_like(tokens, PAD))
    return {
        "net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(PAD).sum(1)},
        "target": target,
        "ntokens": int(tokens.ne(PAD).sum()),
        "nsentences": tokens.size(0),
    }


def criterion():
    return build_criterion(OmegaConf.create({"_name": "masked_lm", "tpu": False}), Task())


def reduced(outputs):
    with metrics.aggregate(new_root=True) as aggregated:
        MaskedLmLoss.reduce_metrics(outputs)
    return aggregated.get_smoothed_values()


def test_loss_is_the_sum_over_masked_tokens():
    model = small_model(**without_dropout())
    tokens = some_tokens(2)
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[0, 2] = masked[1, 4] = masked[1, 5] = True
    loss, size, logged = criterion()(model, sample(tokens, masked))
    expected = F.cross_entropy(model(tokens)[0][masked], tokens[masked], reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert int(size) == 3 and size.dtype == torch.int64
    assert int(logged["sample_size"]) == 3 and logged["nsentences"] == 2 and logged["ntokens"] == 16
    assert logged["loss"].grad_fn is None


def test_gradients_are_those_of_the_plain_formula():
    model = small_model(**without_dropout())
    tokens = some_tokens(2)
    masked = tokens.eq(tokens[0, 1]) | tokens.eq(tokens[1, 3])
    found = torch.autograd.grad(criterion()(model, sample(tokens, masked))[0], list(model.parameters()))
    plain = F.cross_entropy(model(tokens)[0][masked], tokens[masked], reduction="sum")
    for a, b in zip(found, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_masked():
    model = small_model()
    tokens = some_tokens()
    loss, size, _ = criterion()(model, sample(tokens, torch.zeros_like(tokens, dtype=torch.bool)))
    loss.backward()
    assert float(loss.detach()) == 0 and int(size) == 0
    assert all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())


def test_softmax_of_half_precision_is_float32():
    model = small_model(**without_dropout()).bfloat16()
    tokens = some_tokens(2)
    masked = tokens.ne(PAD)
    loss, _, _ = criterion()(model, sample(tokens, masked))
    expected = F.cross_entropy(model(tokens, masked_tokens=masked)[0].float(), tokens[masked], reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2**-8, atol=0)  # logits may be kept unrounded


def test_a_head_that_was_replaced_gives_logits():
    """What a plugin overrides need not know how to compute the loss itself."""
    model = small_model(**without_dropout())
    tokens = some_tokens(2)
    inputs = sample(tokens, tokens.ne(PAD))
    assert model.computes_loss
    expected = criterion()(model, inputs)[0]

    class Head(type(model.encoder.lm_head)):
        def forward(self, features, masked_tokens=None, **unused):
            assert not unused
            return super().forward(features, masked_tokens)

    model.encoder.lm_head.__class__ = Head
    assert not model.computes_loss
    torch.testing.assert_close(criterion()(model, inputs)[0], expected)


def test_two_micro_batches_reduce_like_one():
    model = small_model(**without_dropout())
    tokens = some_tokens(2)
    masked = tokens.ne(PAD) & (torch.arange(9) % 3 == 1)
    whole = criterion()(model, sample(tokens, masked))[2]
    parts = [criterion()(model, sample(tokens[i : i + 1], masked[i : i + 1]))[2] for i in range(2)]
    assert reduced(parts)["loss"] == pytest.approx(reduced([whole])["loss"], abs=2e-5)
    assert MaskedLmLoss.logging_outputs_can_be_summed()


def test_reduction_is_in_bits():
    values = reduced([{"loss": torch.tensor(6.0), "sample_size": torch.tensor(3)}, {"loss": 0.0, "sample_size": 1}])
    assert values["loss"] == pytest.approx(6 / 4 / math.log(2), abs=1e-5)
    assert values["ppl"] == pytest.approx(round(2 ** (6 / 4 / math.log(2)), 2), abs=0.01)
    assert not reduced([{"loss": 0.0, "sample_size": 0}])  # an average over nothing
    assert not reduced([{"loss": torch.tensor(0.0), "sample_size": torch.tensor(0)}])


def test_perplexity():
    assert perplexity(3.0) == 8.0 and perplexity(1e9) == float("inf") and perplexity(torch.tensor(1.5)) == 2.83


@pytest.fixture
def clean_registry():
    entries, configs = dict(CRITERIONS._entries), dict(CRITERIONS._configs)
    yield
    for kept, now in ((entries, CRITERIONS._entries), (configs, CRITERIONS._configs)):
        now.clear()
        now.update(kept)


def test_building_by_constructor(clean_registry):
    @register_criterion("by_name")
    class ByName(FairseqCriterion):
        def __init__(self, task, smoothing, sentence_avg=True):
            super().__init__(task)
            self.smoothing, self.sentence_avg = smoothing, sentence_avg

    @register_criterion("legacy")
    class Legacy(LegacyFairseqCriterion):
        pass

    built = build_criterion(argparse.Namespace(criterion="by_name", smoothing=0.1), Task())
    assert built.smoothing == 0.1 and built.sentence_avg is True and built.padding_idx == PAD
    args = argparse.Namespace(criterion="legacy")
    assert build_criterion(args, Task()).args is args
    with pytest.raises(NotImplementedError, match="needs 'smoothing'"):
        build_criterion(argparse.Namespace(criterion="by_name"), Task())
    with pytest.raises(ValueError, match="must derive from FairseqCriterion"):
        register_criterion("wrong")(dict)


def test_unknown_criterions():
    assert type(build_criterion("masked_lm", Task())) is MaskedLmLoss
    with pytest.raises(ConfigError, match="did you mean 'masked_lm'"):
        build_criterion("maskd_lm", Task())
    with pytest.raises(OutOfScopeError, match="out of scope"):
        build_criterion("label_smoothed_cross_entropy", Task())
    with pytest.raises(ConfigError, match="no criterion is given"):
        build_criterion(argparse.Namespace(), Task())
