"""Reading checkpoints: nothing in a file is executed, and every bad file gets one sentence."""

from __future__ import annotations

import argparse
import builtins
import enum
import functools
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fairseq.checkpoint.safe_load import CheckpointNotFoundError, globals_in, load
from fairseq.errors import CheckpointError
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def save(path, obj, zipped=True):
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def good_state():
    return {"model": OrderedDict(w=torch.arange(3.0)), "extra_state": {"best": 1.5}, "args": None}


@FORMATS
def test_good_file(tmp_path, zipped):
    path = save(tmp_path / "a.pt", good_state(), zipped)
    for mmap in (False, True):
        state = load(path, mmap=mmap)
        assert list(state) == ["model", "extra_state", "args"]
        assert type(state["model"]) is OrderedDict and torch.equal(state["model"]["w"], torch.arange(3.0))


MARK = "os.environ.__setitem__('FAIRSEQ_TEST_EXECUTED', '1')"
ATTACKS = [
    (os.system, ("touch executed",), "posix.system"),
    (eval, (f"__import__('os') and {MARK}",), "builtins.eval"),
    (exec, ("import os; " + MARK,), "builtins.exec"),
    (subprocess.Popen, (["touch", "executed"],), "subprocess.Popen"),
    (functools.partial, (os.system, "touch executed"), r"(functools.partial|posix.system)"),
    (builtins.__import__, ("this",), "builtins.__import__"),
    (getattr, (os, "system"), None),
]


@FORMATS
@pytest.mark.parametrize("place", ["top", "namespace", "model", "config"])
@pytest.mark.parametrize(("function", "args", "name"), ATTACKS[:6], ids=[str(a[2]) for a in ATTACKS[:6]])
def test_callables_are_refused_and_nothing_runs(tmp_path, monkeypatch, capfd, zipped, place, function, args, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAIRSEQ_TEST_EXECUTED", raising=False)
    call = Call(function, *args)
    state = good_state()
    if place == "top":
        state = call
    elif place == "namespace":
        state["args"] = argparse.Namespace(inner=argparse.Namespace(x=[{"y": (call,)}]))
    elif place == "model":
        state["model"]["w"] = call
    else:
        state["cfg"] = {"task": argparse.Namespace(data=call)}
    path = save(tmp_path / "bad.pt", state, zipped)
    with pytest.raises(CheckpointError, match=f"bad.pt.*refused.*{name}.*nothing in it was executed"):
        load(path)
    assert not (tmp_path / "executed").exists()
    assert "FAIRSEQ_TEST_EXECUTED" not in os.environ
    assert "Zen" not in capfd.readouterr().out


class Mine:
    pass


def test_any_other_class_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"test_safe_load\.Mine"):
        load(save(tmp_path / "a.pt", {"model": {}, "x": Mine()}))


def test_a_class_that_somebody_allowed_does_not_replace_ours(tmp_path):
    path = save(tmp_path / "a.pt", {"cfg": OmegaConf.create({"a": argparse.Namespace}, flags={"allow_objects": True})})
    with torch.serialization.safe_globals([argparse.Namespace, DictConfig, Mine]):
        with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):  # the bare class is not data
            load(path)
        assert set(torch.serialization.get_safe_globals()) >= {argparse.Namespace, DictConfig, Mine}
    assert Mine not in torch.serialization.get_safe_globals()


def raw_pickle(tmp_path, payload: bytes) -> str:
    """A torch zip file with ``payload`` as its pickle."""
    whole = io.BytesIO()
    torch.save({}, whole)
    path = tmp_path / "raw.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, payload if name.endswith("data.pkl") else source.read(name))
    return str(path)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        # operator.getitem and builtins.type are names of the allow-list, but calling them does nothing
        (b"\x80\x02coperator\ngetitem\nq\x00}X\x01\x00\x00\x00aK\x01s\x85R.", "operator.getitem"),
        (b"\x80\x02c__builtin__\ntype\nq\x00X\x01\x00\x00\x00a\x85R.", "builtins.type"),
        # state of a Namespace that tries to set its class
        (b"\x80\x02cargparse\nNamespace\nq\x00)\x81N}X\x09\x00\x00\x00__class__h\x00s\x86b.", "not the dictionary"),
        (b"\x80\x02cargparse\nNamespace\nq\x00)\x81}K\x01K\x02sb.", "is not a name"),
        # omegaconf: a container without content, a node without value
        (b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81}b.", "no content"),
        (b"\x80\x02comegaconf.nodes\nAnyNode\n)\x81}b.", "no value"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x01K\x02\x86R.", "numpy value"),
        (b"\x80\x02}q\x00K\x01h\x00s.", "contains itself"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x04\x95\x00", "damaged"),
    ],
)
def test_abused_or_malformed_pickles(tmp_path, payload, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load(raw_pickle(tmp_path, payload))


def test_deep_nesting_is_an_error_not_a_crash(tmp_path):
    payload = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    with pytest.raises(CheckpointError, match="malformed|damaged"):
        load(raw_pickle(tmp_path, payload))


def test_namespace_is_rebuilt(tmp_path):
    inner = argparse.Namespace(lr=[0.1], betas="(0.9, 0.98)")
    state = load(save(tmp_path / "a.pt", {"args": argparse.Namespace(inner=inner, arch="roberta", t=torch.ones(2))}))
    assert type(state["args"]) is argparse.Namespace
    assert state["args"].inner == inner and state["args"].arch == "roberta"
    assert torch.equal(state["args"].t, torch.ones(2))


def test_omegaconf_becomes_plain(tmp_path):
    content = {"a": 1, "b": {"c": [1, "x", None, 2.5, True], "d": "${a}", "e": "???"}, "n": None}
    state = load(save(tmp_path / "a.pt", {"cfg": OmegaConf.create(content), "l": OmegaConf.create([1, {"x": 2}])}))
    assert state["cfg"] == content and type(state["cfg"]["b"]) is dict
    assert state["l"] == [1, {"x": 2}]


@FORMATS
def test_structured_config_of_the_original(tmp_path, monkeypatch, zipped):
    """Its metadata name dataclasses that need not exist here; only the values are read."""

    class Format(enum.Enum):
        json = "json"

    @dataclass
    class CommonConfig:
        seed: Optional[int] = None  # noqa: UP045 (pickled as a call of operator.getitem)
        log_format: Format = Format.json
        lr: list[float] = field(default_factory=lambda: [0.25])
        other: Any = "x"

    @dataclass
    class RootConfig:
        common: CommonConfig = field(default_factory=CommonConfig)

    module = types.ModuleType("fairseq.old_and_gone")
    for cls in (Format, CommonConfig, RootConfig):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    hints = {"Format": Format, "CommonConfig": CommonConfig, "Optional": Optional, "Any": Any}
    vars(module).update(hints)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    objects = {"cfg": OmegaConf.structured(RootConfig), "choice": Format.json, "dc": CommonConfig(seed=3)}
    path = save(tmp_path / "a.pt", objects, zipped)
    wrong = save(tmp_path / "b.pt", {"x": RootConfig}, zipped)
    monkeypatch.delitem(sys.modules, module.__name__)
    state = load(path)
    assert state["cfg"] == {"common": {"seed": None, "log_format": "json", "lr": [0.25], "other": "x"}}
    assert state["choice"] == "json"
    assert state["dc"] == {"seed": 3, "log_format": "json", "lr": [0.25], "other": "x"}
    with pytest.raises(CheckpointError, match=r"fairseq\.old_and_gone\.RootConfig"):
        load(wrong)


def test_numpy_values(tmp_path):
    values = {
        "f8": np.float64(1.5),
        "f4": np.float32(2.5),
        "i8": np.int64(-3),
        "b1": np.bool_(True),
        "big": np.array([1, 2], dtype=">i4"),
        "fortran": np.arange(6).reshape(2, 3).T,
        "text": np.array(["x", "yy"]),
        "dtype": np.dtype("<f4"),
    }
    state = load(save(tmp_path / "a.pt", values))
    for key, value in values.items():
        assert type(state[key]) is type(value) and np.array_equal(state[key], value), key
    assert state["big"].dtype == np.dtype(">i4")
    with pytest.raises(CheckpointError, match="dtype|bytes"):
        load(save(tmp_path / "b.pt", {"x": np.array([None, 1], dtype=object)}))


def test_containers(tmp_path):
    shared = [1]
    counts = defaultdict(list, {"a": [1]})
    keyed = OrderedDict(a=1)
    keyed._metadata = {"": {"version": argparse.Namespace(x=1)}}
    state = load(save(tmp_path / "a.pt", {"d": counts, "s": {1, 2}, "t": (shared, shared), "o": keyed}))
    assert state["d"] == {"a": [1]} and type(state["d"]) is dict
    assert state["s"] == {1, 2} and state["t"][0] is state["t"][1]
    assert state["o"]._metadata[""]["version"] == argparse.Namespace(x=1)


def test_meters_of_2019(tmp_path, monkeypatch):
    """They were pickled whole, under the old module name and with fewer fields."""
    module = types.ModuleType("fairseq.meters")
    originals = {}
    for name, fields in {
        "AverageMeter": {"val": 2.0, "avg": 1.5, "sum": 3.0, "count": 2},
        "TimeMeter": {"init": 4.0, "start": 12345.0, "n": 7},
        "StopwatchMeter": {"sum": 8.0, "n": 2, "start_time": 99.0},
    }.items():
        cls = type(name, (), {"__module__": "fairseq.meters"})
        setattr(module, name, cls)
        originals[name] = cls()
        vars(originals[name]).update(fields)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fairseq.meters", module)
        path = save(tmp_path / "a.pt", {"extra_state": {"train_meters": OrderedDict(originals)}}, zipped=False)
    meters = load(path)["extra_state"]["train_meters"]
    assert type(meters["AverageMeter"]) is AverageMeter and meters["AverageMeter"].avg == 1.5
    assert type(meters["TimeMeter"]) is TimeMeter and meters["TimeMeter"].n == 0
    assert type(meters["StopwatchMeter"]) is StopwatchMeter and meters["StopwatchMeter"].avg == 4.0


@FORMATS
def test_truncation_anywhere(tmp_path, zipped):
    path = tmp_path / "cut.pt"
    save(path, {**good_state(), "big": torch.zeros(500)}, zipped)
    whole = path.read_bytes()
    for size in [*range(1, 80, 7), *range(80, len(whole), 211), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut\.pt") as error:
            load(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def make_tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def make_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("hello world\n" * 50), "not a torch checkpoint"),
        (lambda p: p.write_bytes(bytes(range(1, 256)) * 9), "not a torch checkpoint"),
        (lambda p: p.mkdir(), "is a directory"),
        (make_tar, "not a checkpoint"),
        (make_zip, "zip archive, not a checkpoint"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "damaged"),
        (lambda p: save(p, [1, 2]), "holds a list"),
        (lambda p: save(p, torch.ones(2)), "holds a Tensor"),
    ],
    ids=["empty", "text", "bytes", "directory", "tar", "zip", "pickle", "list", "tensor"],
)
def test_foreign_files(tmp_path, make, sentence):
    path = tmp_path / "x.pt"
    make(path)
    with pytest.raises(CheckpointError, match=sentence) as error:
        load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="none.pt does not exist"):
        load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):  # what old callers catch
        load(tmp_path / "none.pt")


@FORMATS
def test_listing_of_names(tmp_path, zipped):
    path = save(tmp_path / "a.pt", {"x": Call(eval, "1"), "n": argparse.Namespace()}, zipped)
    assert globals_in(path) == {"builtins.eval", "argparse.Namespace"}
