"""Two processes, started once, tell each other values, average gradients and agree; this one checks the results."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.distributed import group, watch
from fairseq.distributed.placement import Placement, free_port
from fairseq.distributed.processes import run_processes
from fairseq.distributed.utils import all_gather_list, all_reduce_dict, broadcast_object
from fairseq.errors import ConfigError, TrainingError
from fairseq.optim.fairseq_optimizer import build_optimizer
from fairseq.training.peers import Accumulated, OutOfMemoryError, Together, average_gradients

SIZE = 2


def configuration(**options):
    section = DistributedTrainingConfig(distributed_world_size=SIZE, device_id=0, **options)
    return SimpleNamespace(distributed_training=section, common=SimpleNamespace(cpu=True, user_dir=None))


def run(main, cfg):
    return run_processes(cfg, Placement(SIZE, f"tcp://127.0.0.1:{free_port()}", start=SIZE), main, {})


class Table(nn.Module):
    """A layer of which batches visit different rows, as in a fast feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.ones(6, 3))
        self.rows.sparse_rows = True
        self.scale = nn.Parameter(torch.ones(3))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, rows):
        return (self.rows[rows] * self.scale).pow(2).sum()


ROWS = [[0, 1], [1, 3]]  # of each process


def adam(model):
    cfg = SimpleNamespace(_name="adam", lr=[0.1], adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=0.1)
    cfg.no_decay, cfg.fff_sparse_update = "", True
    return build_optimizer(cfg, model.named_parameters())


def trained(cfg, backend):
    """A model after an update on all rows, those of this process in two micro-batches, and how it was agreed on."""
    cfg.distributed_training.ddp_backend = backend
    cfg.distributed_training.find_unused_parameters = True
    rank, model = group.get_global_rank(), Table()
    wishes = {"time_up": rank == 1, "other": False}
    peers = Together(model, nn.Identity(), cfg.distributed_training, True, lambda: wishes)
    optimizer = adam(model)
    before = peers.agreed("time_up")
    total = Accumulated()
    for rows in peers.each([[row] for row in ROWS[rank]], 1):
        loss = model(torch.tensor(rows))
        optimizer.backward(loss)
        total.loss, total.sample_size = total.loss + loss.detach(), total.sample_size + 1
        total.logging_outputs.append({"loss": loss.detach(), "rows": len(rows)})
    total = peers.add_up(total)
    optimizer.multiply_grads(peers.averaged / total.divisor())
    norm = optimizer.clip_grad_norm(0.0)
    number = float(peers.read(norm, total))
    optimizer.step()
    agreed = (before, peers.agreed("time_up"), peers.agreed("other"))
    return [p.detach() for p in model.parameters()], (number, float(total.loss), total.logging_outputs), agreed


def skipped(cfg):
    """What two updates come to in the second of which the second process runs out of memory."""
    cfg.distributed_training.ddp_backend = "legacy_ddp"
    peers = Together(Table(), nn.Identity(), cfg.distributed_training, True, dict)
    found = [peers.tolerates_gaps]
    for broken in (False, group.get_global_rank() == 1):
        total = Accumulated(1.0, 1.0, [] if broken else [{"loss": 1.0, "rows": 2}], out_of_memory=broken)
        total = peers.add_up(total)
        try:
            peers.read(torch.zeros(()), total)
            found.append(total.logging_outputs)
        except OutOfMemoryError:
            found.append(None)
    return [*found, peers.tolerates_gaps]


def evaluated(cfg):
    peers = Together(Table(), nn.Identity(), cfg.distributed_training, False, dict)
    rank = group.get_global_rank()
    outputs = [{"loss": rank, "_scored": (torch.tensor([rank]), len)}] if rank == 0 else []
    return peers.collect(Accumulated(0.0, 1.0, outputs))


def gradients():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    rank = group.get_global_rank()
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.full((3,), 4.0)
    average_gradients(parameters, SIZE, 8)
    return [parameter.grad for parameter in parameters]


def everything(cfg):
    rank = group.get_global_rank()
    return {
        "gathered": all_gather_list({"rank": rank, "values": (torch.arange(rank + 1), "a" * 10 * rank, None)}),
        "from 1": broadcast_object(f"of {rank}", src_rank=1),
        "sums": all_reduce_dict({"b": rank, "a": torch.tensor(2)}, torch.device("cpu")),
        "gradients": gradients(),
        "pytorch_ddp": trained(cfg, "pytorch_ddp"),
        "no_c10d": trained(cfg, "no_c10d"),
        "skipped": skipped(cfg),
        "evaluated": evaluated(cfg),
    }


@pytest.fixture(scope="module")
def result():
    return run(everything, configuration())


def test_values_are_told(result):
    assert [part["rank"] for part in result["gathered"]] == [0, 1]
    assert [part["values"][0].tolist() for part in result["gathered"]] == [[0], [0, 1]]
    assert result["gathered"][1]["values"][1:] == ("a" * 10, None)
    assert result["from 1"] == "of 1"
    assert {key: float(value) for key, value in result["sums"].items()} == {"a": 4.0, "b": 1.0}


def test_gradients_are_averaged(result):
    first, second, third = result["gradients"]
    assert first.tolist() == [1.5, 1.5] and second.tolist() == [2.0, 2.0, 2.0] and third is None


@pytest.mark.parametrize("backend", ["pytorch_ddp", "no_c10d"])
def test_an_update_of_two_is_that_of_one(backend, result):
    """Rows that one of the processes has visited are updated, no others; a parameter nobody uses stays as it is."""
    model = Table()
    optimizer = adam(model)
    for rows in sum(ROWS, []):
        optimizer.backward(model(torch.tensor([rows])))
    optimizer.multiply_grads(1 / 4)
    norm = optimizer.clip_grad_norm(0.0)
    optimizer.step()
    parameters, (number, loss, outputs), agreed = result[backend]
    for actual, expected in zip(parameters, model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)
    assert parameters[0][[2, 4, 5]].eq(1).all() and parameters[2].eq(1).all()
    assert number == pytest.approx(float(norm)) and loss == 12
    assert outputs == [{"loss": 12.0, "rows": 4.0}]
    assert agreed == (False, True, False)


def test_an_update_without_memory_is_skipped_by_all(result):
    assert result["skipped"] == [False, [{"loss": 2.0, "rows": 4.0}], None, True]


def test_what_was_evaluated_is_scored_once(result):
    total = result["evaluated"]
    assert total.sample_size == 2.0
    (output,) = total.logging_outputs
    assert output["loss"] == 0 and output["_scored"][1] is len


def failing(cfg):
    if group.get_global_rank() == 1:
        raise ConfigError("no such thing")
    group.gather(None)


def killed(cfg):
    if group.get_global_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.gather(None)


@pytest.mark.parametrize(
    "main, error, message",
    [
        (failing, ConfigError, "process 1 of 2: no such thing"),
        (killed, TrainingError, "process 1 of 2 was ended by SIGKILL"),
    ],
)
def test_the_one_that_failed_is_named(main, error, message):
    with pytest.raises(error, match=message):
        run(main, configuration())


def stalling(cfg):
    watch.mark(3)
    if group.get_global_rank() == 1:
        time.sleep(100)
    group.gather(None)


def stopped(cfg):
    watch.mark(3)
    if group.get_global_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    group.gather(None)


@pytest.mark.parametrize(
    "main, message",
    [
        (stalling, "no progress for 4 seconds: process 1 of 2 is at update 3 in stalling, "),
        pytest.param(
            stopped, "no progress for 4 seconds: process 1 of 2 does not answer", marks=pytest.mark.slow, id="stopped"
        ),
    ],
)
def test_the_one_that_does_not_go_on_is_named(main, message, capfd):
    with pytest.raises(TrainingError, match="process 0 of 2 failed|process 1 of 2 failed"):
        run(main, configuration(heartbeat_timeout=4))
    assert message in capfd.readouterr().err


def test_who_is_to_blame():
    def signs(*updates, count=1, waits=(True, True, True)):
        places = enumerate(zip(updates, waits, strict=True))
        return {rank: watch.Sign(count, update, f"line {rank}", wait) for rank, (update, wait) in places}

    later = signs(4, 3, 4, count=2)
    assert watch.blame(3, signs(4, 3, 4), later) == ("process 1 of 3 is at update 3 in line 1", [0, 1, 2])
    busy = signs(4, 4, 4, count=2, waits=(True, True, False))
    assert watch.blame(3, signs(4, 4, 4), busy)[0] == "process 2 of 3 is at update 4 in line 2"
    silent = {**signs(4, 4, 4, count=2), 0: signs(4, 4, 4)[0]}
    assert watch.blame(3, signs(4, 4, 4), silent) == ("process 0 of 3 does not answer", [1, 2])
