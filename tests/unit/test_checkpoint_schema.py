"""The dictionary of a checkpoint: keys, order, types, sharing."""

from __future__ import annotations

import argparse
import enum
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fairseq.checkpoint import schema
from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.safe_load import load
from fairseq.errors import CheckpointError
from fairseq.training.run_state import count_batches


class Tied(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(1000, 16, dtype=dtype)
        self.head = nn.Linear(16, 1000, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("version", torch.tensor([1.0]))


def build(model=None, optimizer_state=None, snapshot=False, **changes):
    model = model or Tied()
    states = {
        "model": model.state_dict(),
        "optimizer_history": [],
        "classes": {"criterion_name": "MaskedLmLoss", "optimizer_name": "FairseqAdam"},
        "lr_scheduler_state": {"best": None},
        "num_updates": 12,
        "task": {},
        "meters": OrderedDict(default=[(10, "loss", "AverageMeter", {"val": torch.tensor(1.0)})]),
        "training_time": 1.5,
        "best": 9.4,
        "early_stop": None,
        "optimizer": optimizer_state,
        **changes,
    }
    position = {"version": 2, "epoch": 1, "iterations_in_epoch": 24, "shuffle": True}
    state = schema.build_state({"_name": None, "common": {"seed": 1}}, states, position, 9.4)
    return schema.Snapshots().take(state) if snapshot else schema.portable(state)


def test_keys_and_order_of_the_original():
    state = build(optimizer_state={"state": {}, "param_groups": []})
    assert list(state) == [
        "args",
        "cfg",
        "model",
        "criterion",
        "optimizer_history",
        "task_state",
        "extra_state",
        "last_optimizer_state",
    ]
    assert state["args"] is None and state["criterion"] is None and state["task_state"] == {}
    assert list(state["optimizer_history"][0]) == [
        "criterion_name",
        "optimizer_name",
        "lr_scheduler_state",
        "num_updates",
    ]
    assert list(state["extra_state"]) == ["metrics", "previous_training_time", "train_iterator", "val_loss", "best"]
    assert type(state["extra_state"]["metrics"]) is OrderedDict
    assert isinstance(state["extra_state"]["metrics"]["default"][0], tuple)
    assert "last_optimizer_state" not in build(optimizer_state=None)


def test_extra_state_with_ema():
    state = build(ema={"ema": {"w": torch.ones(1)}, "ema_fp32_params": {}}, best=None, early_stop={"runs": 2})
    assert list(state["extra_state"]) == [
        "metrics",
        "previous_training_time",
        "ema",
        "ema_fp32_params",
        "train_iterator",
        "val_loss",
        "early_stop",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("snapshot", [False, True])
def test_float32_and_still_tied(tmp_path, dtype, snapshot):
    model = Tied(dtype)
    state = build(model, {"state": {0: {"step": 3, "exp_avg": torch.ones(2, dtype=dtype)}}}, snapshot)
    weights = state["model"]
    assert type(weights) is OrderedDict and "_metadata" in vars(weights)
    assert all(w.dtype == torch.float32 and not w.requires_grad for w in weights.values())
    assert state["last_optimizer_state"]["state"][0]["exp_avg"].dtype == torch.float32
    assert weights["head.weight"].data_ptr() == weights["embed.weight"].data_ptr()
    assert (weights["embed.weight"].data_ptr() == model.embed.weight.data_ptr()) == (
        dtype == torch.float32 and not snapshot
    )
    assert torch.equal(weights["embed.weight"], model.embed.weight.detach().float())
    path = tmp_path / "a.pt"
    atomic_save(state, path)
    assert os.path.getsize(path) < 1000 * 17 * 4 + 20_000  # the tied matrix once
    loaded = load(path)["model"]
    assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()
    assert loaded._metadata == weights._metadata


def test_a_view_does_not_drag_its_buffer_into_the_file(tmp_path):
    flat = torch.arange(1_000_000.0)
    state = schema.portable({"a": flat[10:20], "b": flat[10:20], "c": flat[5:25].view(4, 5).t()})
    atomic_save(state, tmp_path / "a.pt")
    assert os.path.getsize(tmp_path / "a.pt") < 5000
    assert torch.equal(load(tmp_path / "a.pt")["a"], torch.arange(10.0, 20.0))
    assert torch.equal(state["c"], flat[5:25].view(4, 5).t())
    assert state["a"].data_ptr() == state["b"].data_ptr()


def test_snapshot_is_independent():
    weights = {"w": torch.zeros(3), "scalar": torch.tensor(2), "empty": torch.zeros(0)}
    copy = schema.Snapshots().take(weights)
    weights["w"] += 1
    weights["scalar"] += 1
    assert copy["w"].sum() == 0 and copy["scalar"] == 2 and copy["empty"].shape == (0,)


def test_a_snapshot_of_everything_that_may_change():
    array, sparse = np.zeros(2), torch.eye(2).to_sparse()
    copy = schema.Snapshots().take({"array": array, "sparse": sparse, "list": [array]})
    array += 1
    sparse.values().add_(1)
    assert copy["array"].sum() == copy["list"][0].sum() == 0 and copy["sparse"].sum() == 2


def test_the_next_snapshot_takes_the_memory_of_the_last():
    snapshots, weights = schema.Snapshots(), {"a": torch.zeros(3), "b": torch.ones(3), "half": torch.zeros(2).half()}
    weights["tied"] = weights["a"]
    first = snapshots.take(weights)
    addresses = {value.data_ptr() for value in first.values()}
    weights["a"] += 5
    second = snapshots.take({**weights, "new": torch.ones(7)})
    assert {second[key].data_ptr() for key in weights} == addresses
    assert second["a"].tolist() == [5.0] * 3 and second["tied"] is second["a"] and second["b"].tolist() == [1.0] * 3
    assert snapshots.take({"a": torch.zeros(9)})["a"].shape == (9,)
    assert len(snapshots._used) == 1 and not snapshots._spare  # what nobody needs any more is given back


def test_half_a_snapshot_is_not_kept():
    snapshots = schema.Snapshots()
    with pytest.raises(CheckpointError, match="object"):
        snapshots.take({"a": torch.zeros(3), "b": object()})
    assert not snapshots._used


@pytest.mark.gpu
def test_a_snapshot_of_a_device_is_ordered_before_what_follows():
    weights = {"w": torch.ones(1 << 20, device="cuda"), "half": torch.ones(3, device="cuda").half()}
    snapshots = schema.Snapshots()
    copy = snapshots.take(weights)
    weights["w"].add_(1)
    snapshots.wait()
    assert copy["w"].is_pinned() and copy["w"].sum() == 1 << 20 and copy["half"].dtype == torch.float32


class Choice(str, enum.Enum):
    yes = "y"


def test_values_become_plain(tmp_path):
    state = schema.portable(
        {
            "enum": Choice.yes,
            "np": np.float64(1.5),
            "int": np.int64(3),
            "path": Path("x/y"),
            "namespace": argparse.Namespace(a=np.float32(0.5)),
            "set": {1},
            "tuple": (1, [2]),
            "dtype": torch.float16,
        }
    )
    assert type(state["enum"]) is str and type(state["np"]) is float and type(state["int"]) is int
    atomic_save(state, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt") == {
        "enum": "y",
        "np": 1.5,
        "int": 3,
        "path": "x/y",
        "namespace": argparse.Namespace(a=0.5),
        "set": {1},
        "tuple": (1, [2]),
        "dtype": torch.float16,
    }


class Unknown:
    pass


def test_what_could_not_be_loaded_again_is_not_saved():
    with pytest.raises(CheckpointError, match=r"cannot save task_state\.x\[1\].*test_checkpoint_schema\.Unknown"):
        build(task={"x": [0, Unknown()]})


@pytest.mark.parametrize(
    "stored, batches",
    [
        ({"cfg": {"distributed_training": {"distributed_world_size": 8}}}, 24),
        ({"cfg": None, "args": argparse.Namespace(distributed_world_size=2)}, 6),
        ({"cfg": {"distributed_training": {"distributed_world_size": 1}}}, 3),
        ({"cfg": {}}, 3),
        ({}, 3),
    ],
)
def test_the_place_in_the_data_is_that_of_all_processes(stored, batches):
    """The original stores that of one of them."""
    position = {"epoch": 2, "iterations_in_epoch": 3}
    count_batches(position, stored)
    assert position["batches_in_epoch"] == batches
    count_batches(position, {"cfg": {"distributed_training": {"distributed_world_size": 5}}})
    assert position["batches_in_epoch"] == batches
