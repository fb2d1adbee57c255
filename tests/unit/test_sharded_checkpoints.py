"""Two processes write a model of which each holds some rows; any number of processes reads it, or finds out why not."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fairseq.checkpoint import sharded
from fairseq.checkpoint import store as naming
from fairseq.checkpoint.atomic import atomic_save
from fairseq.checkpoint.interrupted import finish_save
from fairseq.checkpoint.reader import average_checkpoints, load_checked, read
from fairseq.checkpoint.safe_load import load
from fairseq.checkpoint.schema import portable
from fairseq.checkpoint.shard_reader import COMPARED, ShardReader, own_slices
from fairseq.checkpoint.sharded import Writers, remove_unnamed
from fairseq.checkpoint.store import CheckpointStore, resumable
from fairseq.dataclass.configs import CheckpointConfig, DistributedTrainingConfig
from fairseq.distributed import group
from fairseq.distributed.placement import Placement, free_port
from fairseq.distributed.processes import run_processes
from fairseq.errors import CheckpointError, ConfigError, FairseqError
from fairseq.file_io import size_and_checksum
from fairseq.training.sharding import check_sharding
from scripts import consolidate_checkpoint


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


def test_only_what_was_written_goes(tmp_path: Path) -> None:
    for name in ("checkpoint1.shards", "checkpoint2.shards", "corpus.shards"):
        (tmp_path / name).mkdir()
    torch.save({"model": {}, "shards": {"directory": "checkpoint2.shards"}}, tmp_path / "kept.pt")
    (tmp_path / "noise.pt").write_bytes(b"PK noise")
    remove_unnamed(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.shards")) == ["checkpoint2.shards", "corpus.shards"]


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
    """How many rows each process has read, and whether they are right."""
    state = load_checked(arguments[0], shards=own_slices(spread_model(), writers()))
    expected = portable(whole_state())
    table, moment = state["model"]["table"], state["last_optimizer_state"]["state"][2]["exp_avg"]
    right = torch.equal(table.full_tensor(), expected["model"]["table"])
    right &= torch.equal(moment.full_tensor(), expected["last_optimizer_state"]["state"][2]["exp_avg"])
    plain = spread_model()
    plain.one = nn.Parameter(torch.zeros(1))  # of a type that is not spread, for example
    whole = load_checked(arguments[0], shards=own_slices(plain, writers()))
    right &= torch.equal(whole["model"]["table"], expected["model"]["table"])
    return group.gather((len(table.to_local()), len(state["model"]["one"].to_local()), right))


def test_each_process_reads_its_rows(saved: tuple[Path, list[list[str]]]) -> None:
    found = run(3, rows, str(saved[0] / "checkpoint_last.pt"))
    assert all(right for _, _, right in found)
    assert [rows for rows, _, _ in found] == [3, 3, 1]
    assert [ones for _, ones, _ in found] == [1, 0, 0]


# -- what is not as it should be --------------------------------------------------------------------------------------

NAME = "checkpoint_1_9"
PARTS = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / PARTS[1]).unlink(), f"{PARTS[1]} is missing"),
        (lambda folder: os.truncate(folder / PARTS[1], 100), f"{PARTS[1]} is truncated or damaged"),
        (lambda folder: flip(folder / PARTS[0], -1), f"{PARTS[0]} is truncated or damaged"),
        (lambda folder: flip(folder / PARTS[0], 20), f"{PARTS[0]} is truncated or damaged"),
        (lambda folder: shutil.copy(folder / PARTS[0], folder / "x.safetensors"), "does not belong to it"),
        (lambda folder: shutil.rmtree(folder), "directory .* is missing"),
        (lambda folder: ((folder / PARTS[1]).unlink(), os.mkfifo(folder / PARTS[1])), "is not a file"),
    ],
    ids=["missing", "truncated", "numbers", "header", "another", "directory", "pipe"],
)
def test_damage_is_noticed(damage: Any, sentence: str, folder: Path) -> None:
    damage(folder / f"{NAME}.shards")
    with pytest.raises(CheckpointError, match=sentence):
        read(folder / f"{NAME}.pt", with_config=False)
    read(folder / "checkpoint_best.pt", with_config=False)  # the one before


def test_the_one_before_may_be_among_the_best(folder: Path) -> None:
    """All other names may be copies of the same small file, whose parts are damaged."""
    os.rename(folder / "checkpoint_best.pt", folder / "checkpoint.best_loss_4.0000.pt")
    found = resumable(CheckpointConfig(save_dir=str(folder)))
    assert [Path(path).name for path in found] == [
        "checkpoint_last.pt",
        f"{NAME}.pt",
        "checkpoint.best_loss_4.0000.pt",
    ]


def rewritten(folder: Path, **changes: Any) -> Path:
    """The small file with changes to what it says about the parts."""
    path = folder / f"{NAME}.pt"
    state = load(path)
    state["shards"].update(changes)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"directory": "../saved"}, "is refused"),
        ({"directory": ".."}, "is refused"),
        ({"files": {"../checkpoint_last.pt": [1, 2]}}, "is refused"),
        ({"directory": 3}, "must be a text"),
        ({"files": [1]}, "must be a dictionary"),
        ({"files": {PARTS[0]: [1]}}, "must be a list of 2"),
        ({"places": [[[], "model.table"]]}, "must be the place"),
        ({"places": [[["model", "table"], "model.other"]]}, "cannot be read"),
        ({"places": [[["nothing", "table"], "model.table"]]}, "is malformed"),
        ({"places": [[["model", {}], "model.table"]]}, "is malformed"),
        ({"places": [[["model", "count"], "model.table"]]}, "has no place"),
        ({"places": [[["extra_state", "train_iterator"], "model.table"]]}, "has no place"),
    ],
)
def test_crafted_files_are_refused(changes: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read(rewritten(folder, **changes), with_config=False)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("crafted", [b"", b"\xff" * 16, pickle.dumps(Bomb())], ids=["empty", "noise", "pickle"])
def test_nothing_in_the_directory_is_executed(
    crafted: bytes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / f"{NAME}.shards" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    read(folder / f"{NAME}.pt", with_config=False)
    part = folder / f"{NAME}.shards" / PARTS[1]
    part.write_bytes(crafted)
    sums = load(folder / f"{NAME}.pt")["shards"]["files"]
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(rewritten(folder, files={**sums, PARTS[1]: list(size_and_checksum(part))}), with_config=False)
    assert not Path("executed").exists()


@pytest.mark.parametrize("first", [2**40, 1, -1])
def test_parts_that_do_not_fill_a_tensor(first: int, folder: Path) -> None:
    """One that begins far behind the others must not make room for what is between, nor one that overlaps leave a gap."""
    shards = folder / f"{NAME}.shards"
    tensors = load_file(shards / PARTS[1])
    offsets = {name: {"saved_offsets": [first] + [0] * (value.dim() - 1)} for name, value in tensors.items()}
    save_file(tensors, shards / PARTS[1], {"DCP_SHARDING_INFO": json.dumps(offsets)})
    sums = load(folder / f"{NAME}.pt")["shards"]["files"]
    with pytest.raises(CheckpointError, match="are missing"):
        read(rewritten(folder, files={**sums, PARTS[1]: list(size_and_checksum(shards / PARTS[1]))}), with_config=False)


def reading_of_a_crafted_file(cfg: Any, arguments: Any) -> list[str]:
    """What each process says, when one of them cannot read what all others can."""
    model, taken = spread_model(), writers()
    reader = own_slices(model, taken)
    make = reader.empty if taken.rank == 0 else lambda shape, dtype: reader.empty(torch.Size([1]), dtype)
    try:
        load_checked(arguments[0], shards=ShardReader(make, taken))
    except CheckpointError as error:
        return group.gather(str(error))
    return group.gather("")


def test_all_hear_of_what_one_cannot_read(saved: tuple[Path, list[list[str]]]) -> None:
    found = run(2, reading_of_a_crafted_file, str(saved[0] / "checkpoint_last.pt"))
    assert "Size mismatch" in found[0] and found[0] == found[1]


def test_a_save_that_was_cut_short_is_finished_without_reading_the_parts(folder: Path) -> None:
    """Only compared: the first process has no room for all of a model."""
    newest, last = folder / f"{NAME}.pt", folder / "checkpoint_last.pt"
    last.unlink()
    state = read(newest, with_config=False, mmap=True, shards=COMPARED)
    assert state["model"]["table"].numel() == 0
    finish_save(store(folder), str(newest))
    assert last.read_bytes() == newest.read_bytes()
    last.unlink()
    flip(folder / f"{NAME}.shards" / PARTS[1], -1)
    finish_save(store(folder), str(newest))
    assert not last.exists()


def test_parts_of_fairscale_are_told_apart(tmp_path: Path) -> None:
    torch.save({"model": {}, "shard_metadata": {}}, tmp_path / "checkpoint_last-shard0.pt")
    with pytest.raises(CheckpointError, match="fairscale"):
        read(tmp_path / "checkpoint_last-shard0.pt")


# -- faults while writing ---------------------------------------------------------------------------------------------


def failing(cfg: Any, arguments: Any) -> list[Any]:
    """Saves of which the second fails for the last process, whose files may not grow; what each of them says."""
    own, sharded.FILE_BYTES = store(arguments[0], writers(), no_epoch_checkpoints=True), 64
    own.save(lambda: portable(spread_over_processes(whole_state())), 1, 1, True, None)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if group.get_global_rank():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    try:
        own.save(lambda: portable(spread_over_processes(whole_state())), 1, 2, True, None)
        said = ""
    except CheckpointError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    listings = [group.gather(said), sorted(os.listdir(arguments[0]))]
    for updates in (3, 4):
        own.save(lambda: portable(spread_over_processes(whole_state())), 1, updates, True, None)
        group.gather(None)
        listings.append(sorted(os.listdir(arguments[0])))
    return listings


def test_a_failure_of_one_is_that_of_all(tmp_path: Path) -> None:
    (first, second), there, *later = run(2, failing, str(tmp_path))
    assert first == second
    assert "checkpoint_last.pt: process 1: File too large; what was there before is untouched" in first
    assert there == ["checkpoint_last.pt", "checkpoint_last.shards"]
    assert later == [
        ["checkpoint_last.2.shards", "checkpoint_last.pt"],
        ["checkpoint_last.pt", "checkpoint_last.shards"],
    ]
    files = sorted(path.name for path in (tmp_path / "checkpoint_last.shards").glob("shard-00001-*"))
    assert files == [f"shard-00001-model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert_same(load_checked(tmp_path / "checkpoint_last.pt"), portable(whole_state()))


def killed(cfg: Any, arguments: Any) -> None:
    """Dies, or waits for one that does, while saving."""
    directory, rank, where, name = arguments
    if group.get_global_rank() == rank:
        setattr({"sharded": sharded, "naming": naming}[where], name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    own = store(directory, writers(), save_interval_updates=3)
    own.save(lambda: portable(spread_over_processes(whole_state())), 1, 12, False, None)


MOMENTS = [
    (1, "sharded", "_own_sums"),  # the parts are written
    pytest.param(0, "sharded", "_finish", marks=pytest.mark.slow),
    pytest.param(0, "naming", "atomic_save", marks=pytest.mark.slow),  # the directory is there, the file is not
    pytest.param(0, "naming", "atomic_copy", marks=pytest.mark.slow),  # the file is there, checkpoint_last is not
]


@pytest.mark.parametrize(("rank", "where", "name"), MOMENTS)
def test_killed_while_saving(rank: int, where: str, name: str, folder: Path) -> None:
    with pytest.raises(FairseqError):
        run(2, killed, str(folder), rank, where, name)
    newest = resumable(CheckpointConfig(save_dir=str(folder)))[0]
    assert Path(newest).name == ("checkpoint_1_12.pt" if name == "atomic_copy" else "checkpoint_last.pt")
    read(newest, with_config=False)
    own = store(folder, no_epoch_checkpoints=True)
    own.clear_directory()
    own.save({"model": {}}, 2, 15, True, None)
    expected = {"checkpoint_1_3.shards", "checkpoint_1_9.pt", "checkpoint_1_9.shards", "checkpoint_best.pt"}
    expected |= {"checkpoint_1_12.pt", "checkpoint_1_12.shards"} if name == "atomic_copy" else set()
    assert set(os.listdir(folder)) == expected | {"checkpoint_last.pt"}


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint_last.pt", "checkpoint_1_9.shards"])
def test_one_file_of_the_parts(name: str, saved: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    consolidate_checkpoint.main([str(saved[0] / name), str(tmp_path / "whole.pt")])
    expected = portable(whole_state())
    expected["extra_state"]["best"] = 4.0
    assert_same(load(tmp_path / "whole.pt"), expected)
    atomic_save(expected, tmp_path / "expected.pt")
    assert (tmp_path / "whole.pt").stat().st_size == (tmp_path / "expected.pt").stat().st_size  # ties included


def test_one_file_is_not_made_of_one(saved: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    torch.save(portable(whole_state()), tmp_path / "whole.pt")
    with pytest.raises(ConfigError, match="one ordinary file already"):
        consolidate_checkpoint.main([str(tmp_path / "whole.pt"), str(tmp_path / "again.pt")])
    with pytest.raises(ConfigError, match="is a directory"):
        consolidate_checkpoint.main([str(saved[0] / "checkpoint_last.pt"), str(tmp_path)])


def test_where_it_makes_no_sense(caplog: pytest.LogCaptureFixture) -> None:
    options = {"ddp_backend": "fully_sharded", "use_sharded_state": True}
    section = DistributedTrainingConfig(distributed_world_size=2, **options)
    cfg = SimpleNamespace(
        distributed_training=section,
        checkpoint=CheckpointConfig(write_checkpoints_asynchronously=True),
        common=SimpleNamespace(amp=False),
        optimizer=SimpleNamespace(_name="adam"),
    )
    with pytest.raises(ConfigError, match="--write-checkpoints-asynchronously"):
        check_sharding(cfg)
    section.ddp_backend, section.cpu_offload = "pytorch_ddp", True
    check_sharding(cfg)
    assert "cpu_offload and use_sharded_state changes nothing without ddp_backend fully_sharded" in caplog.text
