"""Updates that are not finite: skipped up to a number in a row, then the end."""

import pytest
import torch
from torch import nn

from fairseq.errors import NonFiniteError
from fairseq.logging import metrics
from fairseq.training.trainer import Trainer
from tests.fake_device import Task, configuration


class Model(nn.Linear):
    def set_num_updates(self, updates):
        pass


class Criterion(nn.Module):
    def forward(self, model, sample):
        loss = model(sample["x"]).sum()
        return loss, 1, {"loss": loss.detach(), "ntokens": 1, "nsentences": 1, "sample_size": 1}

    @staticmethod
    def reduce_metrics(outputs):
        metrics.log_scalar("loss", sum(output["loss"] for output in outputs))


GOOD, BAD = ({"x": torch.full((1, 2), value)} for value in (1.0, float("nan")))


def trainer(most):
    cfg = configuration("fp32")
    cfg.common.cpu = True
    cfg.checkpoint.no_save = True
    cfg.optimization.skip_bad_updates = most
    metrics.reset()
    return Trainer(cfg, Task(), Model(2, 1), Criterion())


def test_the_first_one_ends_the_run():
    with pytest.raises(NonFiniteError, match=r"update 1: the loss \(nan nats\).* infinite; first bad tensor: output"):
        trainer(0).train_step([BAD])


def test_some_are_skipped(caplog):
    run = trainer(2)
    assert run.train_step([GOOD]) is not None
    weights = run.model.weight.detach().clone()
    assert run.train_step([BAD]) is None and run.train_step([GOOD, BAD]) is None
    assert torch.equal(run.model.weight, weights) and run.get_num_updates() == 1
    assert "update 2 is skipped" in caplog.text and "(2 in a row, at most 2)" in caplog.text
    assert run.train_step([GOOD]) is not None and run.get_num_updates() == 2
    assert run.train_step([BAD]) is None and run.train_step([BAD]) is None
    with pytest.raises(NonFiniteError, match=r"update 3: .* infinite 3 times in a row"):
        run.train_step([BAD])
