"""Old checkpoint layouts, the readers of the old module, and averaging."""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fairseq.checkpoint.reader import (
    average_checkpoints,
    load_checkpoint_to_cpu,
    load_ema_from_checkpoint,
    load_pretrained_component_from_model,
    read,
    save_ema_as_checkpoint,
    upgrade_state,
)
from fairseq.compat.utils import torch_persistent_save
from fairseq.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]


def current():
    return {
        "args": None,
        "cfg": {"task": {"_name": "masked_lm", "data": "d"}, "model": {"_name": "roberta", "encoder_layers": 2}},
        "model": OrderedDict(w=torch.ones(2)),
        "optimizer_history": [
            {"criterion_name": "C", "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 3}
        ],
        "extra_state": {"train_iterator": {"version": 2, "epoch": 0, "iterations_in_epoch": 7}, "val_loss": 1.0},
        "last_optimizer_state": {"state": {}},
    }


def test_a_current_file_is_left_alone():
    state = current()
    before = copy.deepcopy({k: v for k, v in state.items() if k != "model"})
    assert upgrade_state(state) is state
    assert {k: v for k, v in state.items() if k != "model"} == before


def test_2017_layout():
    state = upgrade_state(
        {"model": {}, "best_loss": 2.5, "optimizer": {"state": 1}, "epoch": 4, "batch_offset": 30, "val_loss": 2.6}
    )
    assert state["optimizer_history"] == [
        {
            "criterion_name": "CrossEntropyCriterion",
            "optimizer_name": "FairseqNAG",
            "lr_scheduler_state": {"best": 2.5},
            "num_updates": 0,
        }
    ]
    assert state["last_optimizer_state"] == {"state": 1}
    assert state["extra_state"] == {
        "epoch": 4,
        "batch_offset": 30,
        "val_loss": 2.6,
        "train_iterator": {"epoch": 4, "iterations_in_epoch": 30},
    }
    assert not {"best_loss", "optimizer", "epoch", "batch_offset", "val_loss"} & set(state)


def test_optimizer_states_inside_the_history():
    state = current()
    del state["last_optimizer_state"]
    state["optimizer_history"] = [
        {"criterion_name": "A", "optimizer": {"n": 1}, "best_loss": 9.0},
        {"criterion_name": "B", "optimizer": {"n": 2}, "best_loss": 8.0, "optimizer_name": "FairseqAdam"},
    ]
    upgrade_state(state)
    assert state["last_optimizer_state"] == {"n": 2}
    assert [h["lr_scheduler_state"]["best"] for h in state["optimizer_history"]] == [9.0, 8.0]
    assert [h["optimizer_name"] for h in state["optimizer_history"]] == ["FairseqNAG", "FairseqAdam"]
    assert all("optimizer" not in h and "best_loss" not in h for h in state["optimizer_history"])


def test_published_model_without_any_training_state():
    state = upgrade_state({"args": argparse.Namespace(arch="roberta_base"), "model": {}})
    assert state["extra_state"]["train_iterator"] == {"epoch": 1, "iterations_in_epoch": 0}
    assert state["optimizer_history"][-1]["lr_scheduler_state"] == {"best": None}
    assert state["optimizer_history"][-1]["num_updates"] == 0
    assert "last_optimizer_state" not in state


def test_epochs_of_args_files_start_at_one():
    state = current()
    state["args"] = argparse.Namespace(arch="roberta")
    upgrade_state(state)
    assert state["extra_state"]["train_iterator"]["epoch"] == 1


# -- reading ----------------------------------------------------------------------------------------------------------


def save(path, state):
    torch.save(state, path)
    return str(path)


def test_read_makes_the_configuration(tmp_path):
    path = save(tmp_path / "a.pt", current())
    state = read(path, {"data": "elsewhere"})
    assert state["cfg"].task.data == "elsewhere" and state["cfg"].model.encoder_layers == 2
    assert load_checkpoint_to_cpu(path, {"data": "x"})["cfg"].task.data == "x"
    assert read(path, with_config=False)["cfg"] == current()["cfg"]
    assert torch.equal(read(path, mmap=True)["model"]["w"], torch.ones(2))


def test_read_of_a_2019_file(tmp_path):
    args = argparse.Namespace(
        arch="roberta_base",
        task="masked_lm",
        criterion="masked_lm",
        optimizer="adam",
        lr_scheduler="polynomial_decay",
        data=["data-bin"],
        max_positions=512,
        lr=0.5,
        min_lr=1e-9,
        log_keys=None,
    )
    state = read(save(tmp_path / "a.pt", {"args": args, "model": {"decoder.w": torch.ones(1).half()}}))
    assert state["cfg"].task.data == "data-bin" and list(state["cfg"].optimization.lr) == [0.5]
    assert state["cfg"].optimization.stop_min_lr == 1e-9
    assert state["cfg"].model._name == "roberta_base" and state["cfg"].model.max_positions == 512


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"encoder.w": torch.ones(1)}, "not a checkpoint of fairseq.*'encoder.w'.*no 'model'"),
        ({}, "holds nothing"),
        ({"model": {}, "optimizer_history": [3]}, "malformed"),
        ({"model": {}, "optimizer_history": 3}, "malformed"),
    ],
)
def test_read_of_something_else(tmp_path, state, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        read(save(tmp_path / "a.pt", state))


def test_read_without_configuration(tmp_path):
    assert read(save(tmp_path / "a.pt", {"model": {}}))["cfg"] is None


def test_references_are_looked_up_and_expressions_refused(tmp_path):
    called = []
    OmegaConf.register_new_resolver("fairseq_test", lambda *args: called.append(args), replace=True)
    state = current()
    state["cfg"]["common"] = {"seed": 5, "log_file": "${checkpoint.save_dir}"}
    state["cfg"]["checkpoint"] = {"save_dir": "here"}
    state["cfg"]["task"] = argparse.Namespace(_name="masked_lm", data="d", seed="${common.seed}")
    cfg = read(save(tmp_path / "a.pt", state))["cfg"]
    assert cfg.task.seed == 5 and cfg.common.log_file == "here"
    for value, reason in {
        "${fairseq_test:1}": "not evaluated",
        "${oc.env:HOME}": "not evaluated",
        "x${common.seed}": "not evaluated",
        "${common.nothing}": "nowhere",
        "${common.log_file}": "circle",
    }.items():
        state["cfg"]["common"]["log_file"] = value
        with pytest.raises(CheckpointError, match=f"log_file = .*{reason}"):
            read(save(tmp_path / "a.pt", state))
    assert not called
    OmegaConf.clear_resolver("fairseq_test")


def test_ema(tmp_path):
    state = current()
    path = save(tmp_path / "a.pt", state)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_ema_from_checkpoint(path)
    state["extra_state"]["ema"] = OrderedDict(w=torch.full((2,), 3.0).half())
    path = save(tmp_path / "a.pt", state)
    save_ema_as_checkpoint(path, str(tmp_path / "b.pt"))
    averaged = read(tmp_path / "b.pt")["model"]
    assert torch.equal(averaged["w"], torch.full((2,), 3.0)) and averaged["w"].dtype == torch.float32


def test_persistent_save(tmp_path):
    torch_persistent_save({"model": {}}, str(tmp_path / "a.pt"), async_write=True)
    with open(tmp_path / "b.pt", "wb") as file:
        torch_persistent_save({"model": {}}, file)
    assert read(tmp_path / "a.pt", with_config=False)["model"] == read(tmp_path / "b.pt", with_config=False)["model"]


def test_pretrained_component(tmp_path):
    class FairseqEncoder(nn.Module):
        pass

    class Encoder(FairseqEncoder):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

    path = save(tmp_path / "a.pt", {"model": OrderedDict({"encoder.w": torch.ones(2), "heads.x": torch.ones(1)})})
    assert torch.equal(load_pretrained_component_from_model(Encoder(), path).w.detach(), torch.ones(2))
    with pytest.raises(ValueError, match="FairseqEncoder.*Linear"):
        load_pretrained_component_from_model(nn.Linear(1, 1), path)


# -- averaging --------------------------------------------------------------------------------------------------------


def test_average(tmp_path):
    paths = []
    for i, (a, b, c, half) in enumerate([([1.0, 2.0], 1.0, 7, 1.0), ([3.0, 6.0], 2.0, 4, 2.0)]):
        weights = OrderedDict(
            a=torch.tensor(a), b=torch.tensor([b]), c=torch.tensor([c]), d=torch.tensor([half], dtype=torch.float16)
        )
        paths.append(save(tmp_path / f"{i}.pt", {"model": weights, "other": i}))
    mean = average_checkpoints(paths)
    assert mean["other"] == 0 and list(mean["model"]) == ["a", "b", "c", "d"]
    assert mean["model"]["a"].tolist() == [2.0, 4.0] and mean["model"]["b"].tolist() == [1.5]
    assert mean["model"]["c"].tolist() == [5]  # integers round down
    assert mean["model"]["d"].dtype == torch.float32 and mean["model"]["d"].tolist() == [1.5]


def test_average_of_tied_parameters(tmp_path):
    paths = []
    for value in (1.0, 4.0):
        w = torch.full((3,), value)
        paths.append(save(tmp_path / f"{value}.pt", {"model": OrderedDict(embed=w, head=w)}))
    weights = average_checkpoints(paths)["model"]
    assert weights["embed"].tolist() == [2.5] * 3 and weights["head"].data_ptr() == weights["embed"].data_ptr()


def test_average_of_different_models(tmp_path):
    paths = [save(tmp_path / f"{k}.pt", {"model": {k: torch.ones(1)}}) for k in "ab"]
    with pytest.raises(KeyError, match="other parameters"):
        average_checkpoints(paths)
    with pytest.raises(CheckpointError, match="no checkpoints"):
        average_checkpoints([])
    with pytest.raises(CheckpointError, match="no 'model'"):
        average_checkpoints([save(tmp_path / "x.pt", {"a": 1})])


def test_average_script(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    from scripts import average_checkpoints as script

    for epoch in range(1, 5):
        save(tmp_path / f"checkpoint{epoch}.pt", {"model": {"w": torch.tensor([float(epoch)])}})
        save(tmp_path / f"checkpoint_1_{epoch}0.pt", {"model": {"w": torch.tensor([epoch * 10.0])}})
        save(tmp_path / f"checkpoint.best_loss_{5 - epoch}.0000.pt", {"model": {"w": torch.tensor([5.0 - epoch])}})

    def mean(*options):
        script.main([*options, "--output", str(tmp_path / "mean.pt")])
        return read(tmp_path / "mean.pt", with_config=False)["model"]["w"].item()

    assert mean("--inputs", str(tmp_path), "--num-epoch-checkpoints", "2") == 3.5
    assert mean("--inputs", str(tmp_path), "--num-epoch-checkpoints", "2", "--checkpoint-upper-bound", "3") == 2.5
    assert mean("--inputs", str(tmp_path), "--num-update-checkpoints", "1") == 40.0
    best = sorted(str(path) for path in tmp_path.glob("checkpoint.best*"))
    assert mean("--inputs", *best, "--num-best-checkpoints", "2") == 1.5
    assert mean("--inputs", str(tmp_path / "checkpoint1.pt"), str(tmp_path / "checkpoint4.pt")) == 2.5
    with pytest.raises(CheckpointError, match="found 4 checkpoint files.*at least 9"):
        mean("--inputs", str(tmp_path), "--num-epoch-checkpoints", "9")
    with pytest.raises(ConfigError, match="is a directory: say which of its checkpoints"):
        mean("--inputs", str(tmp_path))
