"""Two processes write a model of which each holds some rows; any number of processes reads it, or finds out why not."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.checkpoint.reader import average_checkpoints, load_checked, read
from fairseq.checkpoint.schema import portable
from fairseq.checkpoint.shard_reader import rows_of
from fairseq.checkpoint.sharded import Writers
from fairseq.checkpoint.store import CheckpointStore, resumable
from fairseq.dataclass.configs import CheckpointConfig, DistributedTrainingConfig
from fairseq.distributed import group
from fairseq.distributed.placement import Placement, free_port
from fairseq.distributed.processes import run_processes


def run(processes: int, main: Any, *arguments: Any) -> Any:
    """What the first of several processes returns."""
    section = DistributedTrainingConfig(distributed_world_size=processes, device_id=0)
    cfg = SimpleNamespace(distributed_training=section, common=SimpleNamespace(cpu=True, user_dir=None))
    placement = Placement(processes, f"tcp://127.0.0.1:{free_port()}", start=processes)
    return run_processes(cfg, placement, main, {"arguments": arguments})


class Model(nn.Module):
    """Fewer rows than processes, a number of rows that does not divide, tied weights, half precision, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Parameter(torch.randn(1))
        self.table = nn.Parameter(torch.randn(7, 3))
        self.tied = self.table
        self.rounded = nn.Parameter(torch.randn(4, 2).bfloat16())
        self.register_buffer("count", torch.arange(3))


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (group.get_global_world_size(),))


def writers() -> Writers:
    return Writers(group.get_global_rank(), group.get_global_world_size(), group.gather)


def spread_over_processes(state: Any) -> Any:
    """``state`` with the parameters of a model, and what has their shape, as `fully_shard` spreads them."""
    from torch.distributed.tensor import Shard, distribute_tensor

    over, known = mesh(), {}

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)((key, change(item)) for key, item in value.items())
        if not isinstance(value, nn.Parameter) and not (
            torch.is_tensor(value) and value.is_floating_point() and value.dim()
        ):
            return value
        if id(value) not in known:
            known[id(value)] = distribute_tensor(value.detach(), over, [Shard(0)])
        return known[id(value)]

    return change(state)


def whole_state() -> dict[str, Any]:
    model = Model()
    weights = OrderedDict(model.named_parameters(remove_duplicate=False))
    weights.update(model.named_buffers())
    moments = {i: {"step": 3, "exp_avg": p.detach().float() * 2} for i, p in enumerate(model.parameters())}
    return {
        "args": None,
        "cfg": {"common": {"seed": 1}},
        "model": weights,
        "optimizer_history": [
            {"criterion_name": "A", "optimizer_name": "B", "lr_scheduler_state": {"best": None}, "num_updates": 3}
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 3}, "val_loss": None},
        "last_optimizer_state": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]},
    }


def store(directory: Any, own_writers: Writers | None = None, **options: Any) -> CheckpointStore:
    return CheckpointStore(CheckpointConfig(save_dir=str(directory), **options), own_writers)


def written(cfg: Any, arguments: Any) -> list[list[str]]:
    """Saves after updates 3, 6, 9: what is in the directory after each."""
    (directory,) = arguments
    own, listings = store(directory, writers(), save_interval_updates=3, keep_interval_updates=1), []
    for updates in (3, 6, 9):
        own.save(lambda: portable(spread_over_processes(whole_state())), 1, updates, False, 5.0 - (updates == 3))
        group.gather(None)
        listings.append(sorted(os.listdir(directory)))
    return listings


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    directory = tmp_path_factory.mktemp("saved")
    return directory, run(2, written, directory)


@pytest.fixture
def folder(saved: tuple[Path, list[list[str]]], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def assert_same(actual: Any, expected: Any) -> None:
    """Equal values, kinds and order of keys."""
    if torch.is_tensor(expected):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert type(actual) is type(expected) and list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    else:
        assert actual == expected


def test_a_directory_stays_as_long_as_a_file_names_it(saved: tuple[Path, list[list[str]]]) -> None:
    names = ["checkpoint_best.pt", "checkpoint_last.pt"]
    assert saved[1] == [
        ["checkpoint_1_3.pt", "checkpoint_1_3.shards", *names],
        ["checkpoint_1_3.shards", "checkpoint_1_6.pt", "checkpoint_1_6.shards", *names],
        ["checkpoint_1_3.shards", "checkpoint_1_9.pt", "checkpoint_1_9.shards", *names],
    ]


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_1_9.shards"])
def test_reads_as_any_other_file(name: str, saved: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    expected = portable(whole_state())
    expected["extra_state"]["best"] = 4.0
    state = load_checked(saved[0] / name)
    assert_same(state, expected)
    assert state["model"]["tied"].data_ptr() == state["model"]["table"].data_ptr()
    assert resumable(CheckpointConfig(save_dir=str(saved[0])))[0].endswith("checkpoint_last.pt")
    mean = average_checkpoints([str(saved[0] / "checkpoint_1_9.pt")] * 2)["model"]
    torch.testing.assert_close(dict(mean), dict(expected["model"]))


def test_queries_leave_the_tensors(saved: tuple[Path, list[list[str]]]) -> None:
    state = read(saved[0] / "checkpoint_last.pt", mmap=True, with_config=False, shards=None)
    assert state["optimizer_history"][-1]["num_updates"] == 3 and "shards" not in state
    assert state["model"]["table"].numel() == 0 and state["model"]["count"].tolist() == [0, 1, 2]


def spread_model() -> Model:
    model, weights = Model(), spread_over_processes(whole_state()["model"])
    for name in ("one", "table", "tied", "rounded"):
        setattr(model, name, nn.Parameter(weights[name]))
    return model


def rows(cfg: Any, arguments: Any) -> list[Any]:
    """The rows that this process has read, and whether they are right, of each process."""
    state = load_checked(arguments[0], shards=rows_of(spread_model(), writers()))
    expected = portable(whole_state())
    table, moment = state["model"]["table"], state["last_optimizer_state"]["state"][2]["exp_avg"]
    right = torch.equal(table.full_tensor(), expected["model"]["table"])
    right &= torch.equal(moment.full_tensor(), expected["last_optimizer_state"]["state"][2]["exp_avg"])
    return group.gather((table.to_local().clone(), len(state["model"]["one"].to_local()), right))


@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_reads_its_rows(processes: int, saved: tuple[Path, list[list[str]]]) -> None:
    found = run(processes, rows, str(saved[0] / "checkpoint_last.pt"))
    assert all(right for _, _, right in found)
    assert [len(table) for table, _, _ in found] == ([4, 3] if processes == 2 else [2, 2, 2, 1])
    assert [ones for _, ones, _ in found] == [1] + [0] * (processes - 1)
