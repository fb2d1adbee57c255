"""Damaged and crafted checkpoint files: refused with one sentence, quickly, and without taking memory."""

from __future__ import annotations

import io
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.checkpoint.reader import read
from fairseq.checkpoint.safe_load import load
from fairseq.cli import fill_mask, validate
from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim.adam import Adam
from tests.common import ROOT
from tests.runs import DATA

STORED = ROOT / "tests" / "data" / "roberta" / "baseline" / "checkpoint.pt"


def save(path: Path, state: Any, zipped: bool = True) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path


def good() -> dict[str, Any]:
    """A state with all that a training run stores."""
    return {
        "args": None,
        "cfg": {"common": {"seed": 1}, "task": {"_name": "masked_lm", "data": "here"}},
        "model": OrderedDict(w=torch.arange(3.0)),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "A", "optimizer_name": "B", "lr_scheduler_state": {"best": None}, "num_updates": 3}
        ],
        "task_state": {},
        "extra_state": {
            "metrics": {"train": [(10, "loss", "AverageMeter", {"val": torch.tensor(1.0), "sum": 2, "count": 2})]},
            "previous_training_time": 1.5,
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 3, "shuffle": True},
            "val_loss": None,
            "best": 2.5,
        },
        "last_optimizer_state": {
            "state": {0: {"step": 3, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "params": [0]}],
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good state with ``value`` at ``path``; `MISSING` takes the key away."""
    state: Any = good()
    node, keys = state, [int(key) if key.isdecimal() else key for key in path.split("/")]
    for key in keys[:-1]:
        node = node[key]
    if value is MISSING:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return state


MISSING = object()


# -- checksums --------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_record_is_noticed(tmp_path: Path) -> None:
    data, rng = STORED.read_bytes(), random.Random(1)
    with zipfile.ZipFile(STORED) as archive:
        weights = max(archive.infolist(), key=lambda record: record.file_size)
    begin = data.index(weights.filename.encode()) + 200  # behind the local header and its padding
    for _ in range(20):
        place = begin + rng.randrange(weights.file_size - 200)
        (tmp_path / "bad.pt").write_bytes(
            data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        )
        for mmap in (False, True):
            with pytest.raises(CheckpointError, match=r"bad\.pt is truncated or damaged \(Bad CRC-32 for file "):
                load(tmp_path / "bad.pt", mmap=mmap)


def test_a_broken_directory_of_the_archive(tmp_path: Path) -> None:
    data = STORED.read_bytes()
    first = data.index(b"PK\x01\x02")  # the central directory
    for place, value in ((first, b"XX"), (first + 46, b"\xff\xff"), (first + 10, b"\x63"), (first + 42, b"\xff" * 4)):
        (tmp_path / "bad.pt").write_bytes(data[:place] + value + data[place + len(value) :])
        with pytest.raises(CheckpointError, match=r"bad\.pt is truncated or damaged"):
            load(tmp_path / "bad.pt")


def test_a_file_without_sums_is_loaded(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.pt", good())
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load(path)["model"]["w"], torch.arange(3.0))


def test_an_old_file_has_none_which_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(save(tmp_path / "new.pt", good()))
        assert not caplog.text
        load(save(tmp_path / "old.pt", good(), zipped=False))
    assert "old.pt has no checksums" in caplog.text


# -- bombs ------------------------------------------------------------------------------------------------------------


def test_a_record_that_inflates(tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save(good(), stored)
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name) + (bytes(200 << 20) if name.endswith("data.pkl") else b""))
    assert (tmp_path / "bomb.pt").stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match=r"bomb\.pt is refused: it has .* bytes, which would become 209,7"):
        load(tmp_path / "bomb.pt")


def test_a_packed_checkpoint_is_loaded(tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save(good(), stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert torch.equal(load(tmp_path / "a.pt")["model"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_calls_that_make_much_of_little(tmp_path: Path, zipped: bool) -> None:
    class Longer:
        def __reduce__(self) -> Any:
            import _codecs

            return _codecs.encode, ("aaaa", "utf-32")

    for value, words in ((bytearray(10), r"builtins\.bytearray"), (Longer(), "latin1")):
        path = save(tmp_path / "bomb.pt", {**good(), "more": value}, zipped)
        with pytest.raises(CheckpointError, match=words):
            load(path)
    path = save(tmp_path / "bytes.pt", {**good(), "more": b"\x00\xff"}, zipped)
    assert load(path)["more"] == b"\x00\xff"
    assert (
        torch.load(save(tmp_path / "own.pt", bytearray(b"ab")), weights_only=True) == b"ab"
    )  # torch's list is as it was


@pytest.mark.parametrize("place", ["cfg/task/data", "task_state/x", "extra_state/x", "last_optimizer_state/x"])
def test_shared_lists(tmp_path: Path, place: str) -> None:
    laughs: Any = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    with pytest.raises(CheckpointError, match=r"is refused: it holds values that repeat each other: .* 3e\+12"):
        read(save(tmp_path / "bomb.pt", changed(place, laughs)))


def test_nested_too_deep(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(150):
        deep = [deep]
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        read(save(tmp_path / "deep.pt", changed("task_state/x", deep)))


def test_references_to_references(tmp_path: Path) -> None:
    chain = {f"k{number}": [f"${{k{number + 1}}}"] * 20 for number in range(8)} | {"k8": "ha"}
    with pytest.raises(CheckpointError, match="its configuration refers to itself too often"):
        read(save(tmp_path / "bomb.pt", {**good(), "cfg": chain}))


# -- what it holds ----------------------------------------------------------------------------------------------------


def test_the_good_state_is_read(tmp_path: Path) -> None:
    for zipped in (True, False):
        state = read(save(tmp_path / "a.pt", good(), zipped), with_config=False)
        assert state["extra_state"]["train_iterator"]["epoch"] == 1 and state["cfg"] == good()["cfg"]
    # what plugins, and other versions, have beside it
    state = {**good(), "more": 5}
    state["model"]["encoder._extra_state"] = {"any": "thing"}
    state["last_optimizer_state"] = {"adam": {}, "lbfgs": {}}
    state["extra_state"]["best"] = torch.tensor(2.5)
    assert read(save(tmp_path / "a.pt", state), with_config=False)["more"] == 5


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("cfg", 5, "cfg must be a dictionary, but is 5"),
        ("cfg", "x", "cfg must be a dictionary, but is 'x'"),
        ("cfg", [1], r"cfg must be a dictionary, but is \[1\]"),
        ("task_state", 5, "task_state must be a dictionary, but is 5"),
        ("task_state", [{}], "task_state must be a dictionary"),
        ("model/w", 5, "model.w must be a tensor, but is 5"),
        ("model/w", torch.zeros(1).expand(10**9), "model.w repeats the numbers of a smaller tensor"),
        ("model/w", torch.empty(3, device="meta"), "model.w is a tensor without numbers"),
        ("extra_state", 5, "extra_state must be a dictionary"),
        ("extra_state/train_iterator/epoch", MISSING, "extra_state.train_iterator lacks 'epoch'"),
        ("extra_state/train_iterator/iterations_in_epoch", MISSING, "lacks 'iterations_in_epoch'"),
        ("extra_state/train_iterator/epoch", -1, "epoch must be an integer of at least 0 .*, but is -1"),
        ("extra_state/train_iterator/iterations_in_epoch", 0.5, "must be an integer of at least 0 .*, but is 0.5"),
        ("extra_state/train_iterator/epoch", 10**30, "train_iterator.epoch must be an integer"),
        (
            "extra_state/previous_training_time",
            "x",
            "previous_training_time must be a number of at least 0, but is 'x'",
        ),
        ("extra_state/best", "x", "extra_state.best must be a number, but is 'x'"),
        ("extra_state/metrics/train/0", [1], r"extra_state.metrics.train\[0\] must be a list of 4"),
        (
            "extra_state/metrics/train/0",
            (1, "loss", "AverageMeter", {"val": "x"}),
            r"train\[0\]\[3\].val must be a number",
        ),
        ("optimizer_history", 5, "optimizer_history must be a list"),
        ("optimizer_history/0/num_updates", "x", r"optimizer_history\[0\].num_updates must be an integer"),
        ("optimizer_history/0/lr_scheduler_state", {"lr": "x"}, "lr_scheduler_state.lr must be a number"),
        ("last_optimizer_state", 5, "last_optimizer_state must be a dictionary, but is 5"),
        (
            "last_optimizer_state/param_groups/0/betas",
            (0.9, 1.0),
            r"betas\[1\] must be a number .* less than 1, but is 1.0",
        ),
        (
            "last_optimizer_state/param_groups/0/lr",
            float("nan"),
            r"param_groups\[0\].lr must be a number of at least 0",
        ),
        ("last_optimizer_state/param_groups/0/params", "x", r"param_groups\[0\].params must be a list"),
        ("last_optimizer_state/state/0/exp_avg", 5, "state.0.exp_avg must be a tensor"),
        ("last_optimizer_state/state/0/step", -1, "state.0.step must be a number of at least 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, path: str, value: Any, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=rf"bad\.pt is malformed: .*{sentence}"):
        read(save(tmp_path / "bad.pt", changed(path, value)))


def test_texts_that_cannot_be_shown(tmp_path: Path) -> None:
    """Half of a surrogate pair; bytes of a file name that are not UTF-8, as Python spells them, are no mistake."""
    stored = io.BytesIO()
    torch.save(changed("cfg/task/data", "a-place"), stored)
    for written, wrong in ((b"a-\xed\xa0\x80ce", True), (b"a-\xed\xb3\xa9ce", False)):
        with zipfile.ZipFile(stored) as source, zipfile.ZipFile(tmp_path / "bad.pt", "w") as target:
            for name in source.namelist():
                target.writestr(name, source.read(name).replace(b"a-place", written))
        if wrong:
            with pytest.raises(CheckpointError, match=r"cfg\.task\.data must be a text that is Unicode"):
                read(tmp_path / "bad.pt", with_config=False)
        else:
            assert read(tmp_path / "bad.pt", with_config=False)["cfg"]["task"]["data"] == "a-\udce9ce"


# -- by the commands --------------------------------------------------------------------------------------------------


def said_by(capsys: pytest.CaptureFixture[str], command: Any, *words: object) -> str:
    """The sentence that the command is refused with."""
    with pytest.raises(SystemExit) as ended:
        command.cli_main(argv=[str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_file_of_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "checkpoint_last.pt", {"model": {}})
    said = said_by(capsys, fill_mask, "--path", tmp_path, "--bpe", "none", "--cpu", "102 <mask>")
    assert said.endswith("the checkpoint stores no configuration, so that its task and model are not known")


def test_a_stored_seed_that_no_stream_begins_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(STORED, weights_only=True)
    state["cfg"]["task"]["seed"] = -1
    words = (
        "--path",
        save(tmp_path / "a.pt", state),
        "--batch-size",
        4,
        "--cpu",
        "--task",
        "masked_lm",
        "--log-format",
        "none",
    )
    assert "the seed (and epoch) gives -1" in said_by(capsys, validate, DATA, *words, "--num-workers", 0)


def test_settings_that_nobody_gave(tmp_path: Path) -> None:
    """``???`` is a question to whoever trains; in a file it stands for the default."""
    state = torch.load(STORED, weights_only=True)
    wanted = read(STORED)["cfg"]
    state["cfg"]["model"]["encoder_layers"] = state["cfg"]["common"]["seed"] = "???"
    cfg = read(save(tmp_path / "a.pt", state))["cfg"]
    assert "encoder_layers" not in cfg.model and cfg.common.seed == 1
    assert cfg.optimization == wanted.optimization


def test_betas_of_another_number() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = Adam([weight])
    stored = optimizer.state_dict()
    stored["param_groups"][0]["betas"] = (0.9,)
    with pytest.raises(ConfigError, match="adam_betas must be a pair of numbers"):
        optimizer.load_state_dict(stored)
