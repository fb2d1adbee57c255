"""The directory of a run: names, order, pruning, background writing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from fairseq.checkpoint import atomic
from fairseq.checkpoint import store as naming
from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.store import CheckpointStore, resumable
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]


def store(tmp_path, **options) -> CheckpointStore:
    cfg = CheckpointConfig()
    for key, value in {"save_dir": str(tmp_path / "ckpt"), **options}.items():
        assert hasattr(cfg, key)
        setattr(cfg, key, value)
    return CheckpointStore(cfg)


def state(value=0.0, size=4):
    return {"model": {"w": torch.full((size,), value)}, "extra_state": {"val_loss": value}}


def files(tmp_path):
    return sorted(os.listdir(tmp_path / "ckpt"))


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "when", "expected"),
    [
        ({}, (3, 70, True, None), ["checkpoint3.pt", "checkpoint_last.pt"]),
        ({}, (3, 70, True, 1.5), ["checkpoint3.pt", "checkpoint_best.pt", "checkpoint_last.pt"]),
        ({"save_interval": 2}, (3, 70, True, None), ["checkpoint_last.pt"]),
        ({"no_epoch_checkpoints": True}, (3, 70, True, None), ["checkpoint_last.pt"]),
        ({"no_last_checkpoints": True}, (3, 70, True, None), ["checkpoint3.pt"]),
        ({"no_save": True}, (3, 70, True, 1.5), []),
        ({}, (3, 70, False, None), ["checkpoint_last.pt"]),
        ({"save_interval_updates": 10}, (3, 70, False, None), ["checkpoint_3_70.pt", "checkpoint_last.pt"]),
        ({"save_interval_updates": 10}, (3, 71, False, None), ["checkpoint_last.pt"]),
        ({"save_interval_updates": 10}, (3, 70, True, None), ["checkpoint3.pt", "checkpoint_last.pt"]),
        (
            {"checkpoint_suffix": "-x", "save_interval_updates": 5},
            (1, 5, False, 2.0),
            ["checkpoint_1_5-x.pt", "checkpoint_best-x.pt", "checkpoint_last-x.pt"],
        ),
        ({}, (1, 5, True, float("nan")), ["checkpoint1.pt", "checkpoint_last.pt"]),
    ],
)
def test_names(tmp_path, options, when, expected):
    assert store(tmp_path, **options).names(*when) == expected


def test_suffix_of_a_shard(tmp_path):
    assert store(tmp_path, checkpoint_suffix="-shard3").names(1, 1, True, None) == [
        "checkpoint1-shard3.pt",
        "checkpoint_last-shard3.pt",
    ]


@pytest.mark.parametrize(("maximize", "values"), [(False, [3.0, 2.0, 2.0, 2.5]), (True, [3.0, 4.0, 4.0, 3.5])])
def test_best_counts_ties(tmp_path, maximize, values):
    s = store(tmp_path, maximize_best_checkpoint_metric=maximize)
    wrote = []
    for epoch, value in enumerate(values, 1):
        wrote.append("checkpoint_best.pt" in s.names(epoch, epoch, True, value))
        s.save(state(value), epoch, epoch, True, value)
    assert wrote == [True, True, True, False]
    assert s.best == values[1]
    assert load(tmp_path / "ckpt/checkpoint_best.pt")["extra_state"] == {"val_loss": values[2], "best": values[1]}
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["extra_state"] == {"val_loss": values[3], "best": values[1]}


def test_best_of_a_resumed_run(tmp_path):
    s = store(tmp_path)
    s.best = 1.0
    assert "checkpoint_best.pt" not in s.names(5, 50, True, 1.1)
    assert "checkpoint_best.pt" in s.names(5, 50, True, 1.0)


def test_no_save_still_observes(tmp_path):
    s = store(tmp_path, no_save=True)
    assert s.save(lambda: pytest.fail("built"), 1, 1, True, 2.5) is None
    assert s.best == 2.5 and not (tmp_path / "ckpt").exists()


def test_state_is_built_after_best_is_known(tmp_path):
    s = store(tmp_path)
    seen = []

    def build():
        seen.append(s.best)
        return state()

    assert s.save(build, 1, 1, True, 2.5) == tmp_path / "ckpt/checkpoint1.pt"
    assert seen == [2.5]


def test_all_names_are_full_independent_files(tmp_path):
    s = store(tmp_path)
    s.save(state(7.0), 1, 10, True, 2.0)
    assert files(tmp_path) == ["checkpoint1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    for name in files(tmp_path):
        path = tmp_path / "ckpt" / name
        assert not path.is_symlink() and path.stat().st_nlink == 1
        assert load(path)["model"]["w"][0] == 7.0
    (tmp_path / "ckpt/checkpoint1.pt").write_bytes(b"damaged by somebody")
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["model"]["w"][0] == 7.0


def test_a_linked_last_becomes_a_file(tmp_path):
    s = store(tmp_path)
    (tmp_path / "ckpt").mkdir()
    atomic_save(state(1.0), tmp_path / "ckpt/checkpoint1.pt")
    (tmp_path / "ckpt/checkpoint_last.pt").symlink_to("checkpoint1.pt")
    s.save(state(2.0), 2, 20, True, None)
    assert not (tmp_path / "ckpt/checkpoint_last.pt").is_symlink()
    assert load(tmp_path / "ckpt/checkpoint1.pt")["model"]["w"][0] == 1.0


def test_last_is_written_last(tmp_path, monkeypatch):
    s = store(tmp_path, save_interval_updates=1, keep_best_checkpoints=1)
    order = []
    replace = os.replace
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (order.append(os.path.basename(b)), replace(a, b)))
    s.save(state(), 1, 10, False, 2.0)
    assert order[0] == "checkpoint_1_10.pt" and order[-1] == "checkpoint_last.pt" and len(order) == 4


# -- pruning ----------------------------------------------------------------------------------------------------------


def test_interval_checkpoints_are_pruned_in_mid_epoch_only(tmp_path):
    s = store(tmp_path, save_interval_updates=10, keep_interval_updates=2, no_last_checkpoints=True)
    for updates in (10, 20, 100, 110):
        s.save(state(), 1, updates, False, None)
    assert files(tmp_path) == ["checkpoint_1_100.pt", "checkpoint_1_110.pt"]
    atomic_save(state(), tmp_path / "ckpt/checkpoint_1_5.pt")
    s.save(state(), 1, 115, True, None)
    assert "checkpoint_1_5.pt" in files(tmp_path)
    naming.prune(s.cfg, False, [])
    assert "checkpoint_1_5.pt" not in files(tmp_path)


def test_pattern_exempts_multiples(tmp_path):
    s = store(
        tmp_path,
        save_interval_updates=10,
        keep_interval_updates=1,
        keep_interval_updates_pattern=20,
        no_last_checkpoints=True,
    )
    for updates in range(10, 60, 10):
        s.save(state(), 1, updates, False, None)
    assert files(tmp_path) == ["checkpoint_1_20.pt", "checkpoint_1_40.pt", "checkpoint_1_50.pt"]


def test_epochs_are_pruned(tmp_path):
    s = store(tmp_path, keep_last_epochs=2)
    for epoch in (8, 9, 10, 11):
        s.save(state(), epoch, epoch, True, None)
    assert files(tmp_path) == ["checkpoint10.pt", "checkpoint11.pt", "checkpoint_last.pt"]


def test_what_was_just_written_stays(tmp_path):
    """A run started afresh in the directory of an older, longer one."""
    (tmp_path / "ckpt").mkdir()
    for updates in (1000, 2000):
        atomic_save(state(), tmp_path / f"ckpt/checkpoint_9_{updates}.pt")
    s = store(tmp_path, save_interval_updates=10, keep_interval_updates=2, no_last_checkpoints=True)
    s.save(state(), 1, 10, False, None)
    assert files(tmp_path) == ["checkpoint_1_10.pt", "checkpoint_9_2000.pt"]


def test_what_a_link_points_to_stays(tmp_path):
    (tmp_path / "ckpt").mkdir()
    for epoch in (1, 2, 3, 4):
        atomic_save(state(), tmp_path / f"ckpt/checkpoint{epoch}.pt")
    (tmp_path / "ckpt/checkpoint_best.pt").symlink_to("checkpoint1.pt")
    naming.prune(store(tmp_path, keep_last_epochs=2).cfg, True, [])
    assert files(tmp_path) == ["checkpoint1.pt", "checkpoint4.pt", "checkpoint_best.pt"]


@pytest.mark.parametrize(
    ("maximize", "values", "kept"),
    [
        (False, [5.0, 3.0, 4.0, 6.0, 2.0], [2.0, 3.0]),
        (True, [5.0, 3.0, 4.0, 6.0, 2.0], [6.0, 5.0]),
        (True, [-5.0, -3.0, -4.0, -0.5], [-0.5, -3.0]),
        (False, [-5.0, -3.0, -4.0, -0.5], [-5.0, -4.0]),
        (False, [2.0, 2.0, 2.0, 2.0], [2.0, 2.0]),
    ],
)
def test_best_n_are_kept(tmp_path, maximize, values, kept):
    s = store(
        tmp_path,
        keep_best_checkpoints=2,
        maximize_best_checkpoint_metric=maximize,
        best_checkpoint_metric="my.acc",
        no_epoch_checkpoints=True,
    )
    for epoch, value in enumerate(values, 1):
        s.save(state(value), epoch, epoch * 10, True, value)
        named = [f for f in files(tmp_path) if f.startswith("checkpoint.best_my.acc_")]
        assert len(named) == min(epoch, 2)
    assert sorted(naming.kept_value(f, "my.acc") for f in named) == sorted(kept)


def test_more_than_ten_best(tmp_path):
    s = store(tmp_path, keep_best_checkpoints=12, no_epoch_checkpoints=True, no_last_checkpoints=True)
    for i in range(14):
        s.save(state(), i + 1, i, True, 2.0 + i / 100)
    named = [f for f in files(tmp_path) if f.startswith("checkpoint.best_loss_")]
    assert len(named) == 12
    assert all(len(f) == len("checkpoint.best_loss_2.0000.pt") for f in named)


def test_digit_of_the_original(tmp_path):
    """The seeded draw: RandomState(hash((epoch, updates, value)) as the original used it), below N."""
    s = store(tmp_path, keep_best_checkpoints=3)
    names = {s.kept_best_name(epoch, 10, 2.5) for epoch in range(1, 30)}
    assert names == {f"checkpoint.best_loss_2.500{digit}.pt" for digit in range(3)}


def test_paths_are_sorted_by_number(tmp_path):
    for name in ("checkpoint2.pt", "checkpoint10.pt", "checkpoint_last.pt", "checkpoint3.pt.tmp", "xcheckpoint1.pt"):
        (tmp_path / name).touch()
    assert naming.checkpoint_paths(str(tmp_path)) == [
        str(tmp_path / "checkpoint10.pt"),
        str(tmp_path / "checkpoint2.pt"),
    ]
    assert naming.checkpoint_paths(str(tmp_path), keep_match=True)[0] == (str(tmp_path / "checkpoint10.pt"), 10)
    assert naming.checkpoint_paths(str(tmp_path), r"checkpoint_last\.pt") == [str(tmp_path / "checkpoint_last.pt")]
    assert naming.checkpoint_paths(str(tmp_path / "missing")) == []


# -- in the background ------------------------------------------------------------------------------------------------


def test_background_write_is_a_snapshot_with_all_names(tmp_path, monkeypatch):
    s = store(tmp_path, write_checkpoints_asynchronously=True, keep_last_epochs=1)
    gate, begun = threading.Event(), threading.Event()
    save = atomic_save

    def slow(obj, path):
        begun.set()
        gate.wait(10)
        save(obj, path)

    monkeypatch.setattr("fairseq.checkpoint.store.atomic_save", slow)
    running = state(1.0)
    s.save(running, 1, 10, True, 2.0)
    assert begun.wait(10)
    running["model"]["w"].fill_(99.0)  # training goes on
    assert not (tmp_path / "ckpt/checkpoint_last.pt").exists()
    gate.set()
    s.wait()
    assert files(tmp_path) == ["checkpoint1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    assert load(tmp_path / "ckpt/checkpoint_last.pt")["model"]["w"][0] == 1.0
    s.save(running, 2, 20, True, 3.0)
    s.wait()
    assert files(tmp_path) == ["checkpoint2.pt", "checkpoint_best.pt", "checkpoint_last.pt"]


def test_background_errors_are_raised_once_and_logged(tmp_path, monkeypatch, caplog):
    def fail(obj, path):
        raise CheckpointError("disk full")

    s = store(tmp_path, write_checkpoints_asynchronously=True)
    monkeypatch.setattr("fairseq.checkpoint.store.atomic_save", fail)
    s.save(state(1.0), 1, 10, True, 2.0)
    with pytest.raises(CheckpointError, match="disk full"):
        s.save(state(1.0), 2, 20, True, 2.0)
    s.wait()
    assert "disk full" in caplog.text


def test_both_ways_write_the_same_bytes(tmp_path):
    flat = torch.arange(100.0)
    contents = {**state(1.0), "views": [flat[:10], flat[:10], flat[5:]], "half": torch.ones(3).half(), "name": "x"}
    for background in (False, True):
        s = store(tmp_path / str(background), write_checkpoints_asynchronously=background)
        for epoch in (1, 2):
            s.save(contents, epoch, 10 * epoch, True, 2.0)
        s.wait()
    for name in files(tmp_path / "True"):
        assert (tmp_path / "True/ckpt" / name).read_bytes() == (tmp_path / "False/ckpt" / name).read_bytes()


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch, caplog):
    def fail(*unused, **more):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore")

    s = store(tmp_path, write_checkpoints_asynchronously=True)
    monkeypatch.setattr("fairseq.checkpoint.schema.torch.empty", fail)
    s.save(state(1.0), 1, 10, True, 2.0)
    assert files(tmp_path) == ["checkpoint1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    assert "can't allocate memory)" in caplog.text


def test_what_a_run_may_go_on_from(tmp_path):
    cfg = CheckpointConfig(save_dir=str(tmp_path))
    assert resumable(cfg) == []
    written = (
        "checkpoint1.pt",
        "checkpoint_2_9.pt",
        "checkpoint_best.pt",
        "checkpoint_last.pt",
        "crash.pt",
        "x.pt.tmp",
    )
    for age, name in enumerate(written):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (age, age))
    names = [os.path.basename(path) for path in resumable(cfg)]
    assert names == ["checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_2_9.pt", "checkpoint1.pt"]
    only_last = CheckpointConfig(save_dir=str(tmp_path), resume="last")
    assert [os.path.basename(path) for path in resumable(only_last)] == ["checkpoint_last.pt"]
    (tmp_path / "checkpoint_last.pt").unlink()
    assert resumable(only_last) == [] and len(resumable(cfg)) == 3
    cfg.no_last_checkpoints = True  # whoever does not want it starts anew, as in the original
    assert resumable(cfg) == []


def test_a_checkpoint_is_forced_where_none_is_due(tmp_path):
    store = CheckpointStore(CheckpointConfig(save_dir=str(tmp_path), no_last_checkpoints=True))
    assert store.names(1, 5, False, None) == []
    assert store.names(1, 5, False, None, forced=True) == ["checkpoint_1_5.pt"]
    store.cfg.no_save = True
    assert store.names(1, 5, False, None, forced=True) == []
