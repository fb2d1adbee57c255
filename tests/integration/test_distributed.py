"""Several processes on one machine (gloo) train as one does: the same batches, the same losses, from any of its files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.integration.test_finetuning import FLAGS as FINE_TUNING
from tests.integration.test_finetuning import GLUE, TASKS
from tests.runs import DATA, TINY_FLAGS, environment, run, train, train_inner, valid

PLUGIN = '''
"""A masked-LM loss that writes down what it was given."""

import os

from fairseq.criterions.configs import MaskedLmConfig
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.registry import CRITERIONS


@CRITERIONS.register("watched", dataclass=MaskedLmConfig)
class Watched(MaskedLmLoss):
    updates = -1

    def forward(self, model, sample, reduce=True):
        loss, sample_size, output = super().forward(model, sample, reduce)
        if model.training:
            name = f"{os.environ['IDS']}.{os.environ.get('RANK', '0')}"
            with open(name, "a") as file:
                tokens = int((sample["target"] * (sample["target"] != self.padding_idx)).sum())
                print(model.updates, sorted(sample["id"].tolist()), tokens, file=file)
        return loss, sample_size, output
'''
COUNTING = """
from fairseq.models.roberta.model import RobertaModel

_told = RobertaModel.set_num_updates


def set_num_updates(self, updates):
    self.updates = updates
    _told(self, updates)


RobertaModel.set_num_updates = set_num_updates
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distributed")
    plugin = place / "watching"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(PLUGIN + COUNTING)
    return place


Update = tuple[float, float]


class Run:
    """Losses by update, what every update has read (with a sum over the targets, which tells the masks), validation."""

    def __init__(self, folder: Path, name: str, processes: int, update_freq: int, *flags: object) -> None:
        words = ["--update-freq", update_freq, "--max-update", 6, "--save-dir", name, "--user-dir", "watching"]
        words += ["--max-valid-steps", 5]
        words += ["--criterion", "watched", "--distributed-world-size", processes, *flags]
        self.text = train(DATA, *TINY_FLAGS, *words, cwd=folder, IDS=str(folder / f"{name}.ids")).stdout
        self.losses = {int(update): self._numbers(row) for update, row in train_inner(self.text).items()}
        self.valid = {update: float(row["valid_loss"]) for update, row in valid(self.text).items()}
        self.read: dict[int, list[str]] = defaultdict(list)
        for file in folder.glob(f"{name}.ids.*"):
            for line in file.read_text().splitlines():
                update, _, batch = line.partition(" ")
                self.read[int(update) + 1].append(batch)
        self.read = {update: sorted(batches) for update, batches in self.read.items()}

    @staticmethod
    def _numbers(row: dict[str, str]) -> dict[str, float]:
        return {key: float(row[key]) for key in ("loss", "gnorm", "lr", "wpb", "bsz")}


def assert_same(actual: Run, expected: Run, first: int = 1) -> None:
    assert actual.losses.keys() == actual.read.keys() == set(range(first, 7))
    for update, numbers in actual.losses.items():
        assert actual.read[update] == expected.read[update]
        assert numbers == pytest.approx(expected.losses[update], rel=2e-5)  # of six printed digits
    assert actual.valid["6"] == pytest.approx(expected.valid["6"], rel=2e-5)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Run:
    return Run(folder, "alone", 1, 4)


SHARDED = ("--ddp-backend", "fully_sharded", "--min-params-to-wrap", 0)


@pytest.fixture(scope="module")
def two(folder: Path) -> Run:
    return Run(folder, "two", 2, 2, "--save-interval-updates", 3, "--ddp-comm-hook", "none")


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Run:
    return Run(folder, "sharded", 2, 2, "--save-interval-updates", 3, *SHARDED)


def test_two_processes_train_as_one(two: Run, alone: Run) -> None:
    assert all(len(batches) == 4 for batches in alone.read.values())
    assert_same(two, alone)
    assert two.valid["3"] > two.valid["6"]


def test_two_processes_that_share_the_parameters_train_as_one(sharded: Run, two: Run, alone: Run, folder: Path) -> None:
    assert_same(sharded, alone)
    name = "checkpoint_1_3.pt"
    files = [torch.load(folder / run / name, weights_only=False) for run in ("sharded", "two")]
    for part in ("model", "last_optimizer_state"):
        actual, expected = (flat(file[part]) for file in files)
        assert list(actual) == list(expected)
        for key, value in expected.items():
            same = {"rtol": 1e-4, "atol": 1e-4} if torch.is_tensor(value) else {}
            torch.testing.assert_close(actual[key], value, msg=f"{key} {{}}".format, **same)
    assert (folder / "sharded" / name).stat().st_size == pytest.approx((folder / "two" / name).stat().st_size, rel=0.01)


def flat(state: object, where: str = "") -> dict[str, object]:
    """The leaves of a nested ``state`` by their places."""
    if not isinstance(state, dict | list):
        return {where: state}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return {key: leaf for name, part in items for key, leaf in flat(part, f"{where}.{name}").items()}


@pytest.mark.parametrize("processes, flags", [(4, ("--ddp-backend", "legacy_ddp")), (1, ())])
def test_another_number_of_processes_goes_on(
    processes: int, flags: tuple[str, ...], folder: Path, two: Run, alone: Run
) -> None:
    saved = folder / "two" / "checkpoint_1_3.pt"
    resumed = Run(folder, f"on{processes}", processes, 4 // processes, "--restore-file", saved, *flags)
    assert_same(resumed, alone, first=4)


def test_another_seed_goes_on_with_other_batches_and_masks(folder: Path, two: Run, alone: Run) -> None:
    """The documented way past a jump of the loss. The model and its schedule go on, and the place in the epoch."""
    saved = folder / "two" / "checkpoint_1_3.pt"
    again = Run(folder, "again", 1, 4, "--restore-file", saved, "--seed", 2, "--dropout", 0.1)
    assert again.losses.keys() == again.read.keys() == {4, 5, 6}
    places = {
        run: {row["num_updates"]: row["update"] for row in train_inner(run.text).values()} for run in (again, alone)
    }
    for update, numbers in again.losses.items():
        assert numbers["lr"] == alone.losses[update]["lr"]
        assert places[again][str(update)] == places[alone][str(update)]
        assert not set(again.read[update]) & set(alone.read[update])
        assert numbers["loss"] == pytest.approx(alone.losses[update]["loss"], rel=0.05)
        assert numbers["loss"] < alone.losses[1]["loss"]
    other = Run(folder, "other", 1, 4, "--restore-file", saved, "--seed", 2)
    assert other.read == again.read and other.losses != again.losses  # by dropout


@pytest.mark.parametrize(
    "saved, processes, flags",
    [
        ("sharded", 1, ()),
        pytest.param("sharded", 4, SHARDED, marks=pytest.mark.slow),
        pytest.param("sharded", 2, (), marks=pytest.mark.slow),
        pytest.param("two", 4, SHARDED, marks=pytest.mark.slow),
    ],
)
def test_another_number_of_parts_goes_on(
    saved: str, processes: int, flags: tuple[object, ...], folder: Path, two: Run, sharded: Run, alone: Run
) -> None:
    file = folder / saved / "checkpoint_1_3.pt"
    name = f"{saved}-on-{processes}-{len(flags)}"
    assert_same(Run(folder, name, processes, 4 // processes, "--restore-file", file, *flags), alone, first=4)


def test_started_by_torchrun(folder: Path, alone: Run) -> None:
    name = "torchrun"
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    words += ["--standalone", "-m", "fairseq.cli.train", str(DATA), *TINY_FLAGS, "--update-freq", "2"]
    words += ["--max-update", "2", "--save-dir", name, "--ddp-backend", "no_c10d", "--disable-validation"]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = {int(update): float(row["loss"]) for update, row in train_inner(done.stdout).items()}
    assert losses == pytest.approx({update: alone.losses[update]["loss"] for update in (1, 2)}, rel=2e-5)


def test_a_mistake_is_told_once(folder: Path) -> None:
    done = run(
        "fairseq.cli.train", "nowhere", *TINY_FLAGS, "--max-update", 1, "--distributed-world-size", 2, cwd=folder
    )
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "nowhere" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", [("--find-unused-parameters",), SHARDED], ids=["replicated", "sharded"])
def test_fine_tuning_is_scored_on_the_whole_set(how: tuple[object, ...], tmp_path: Path) -> None:
    """Unused parameters (the LM head), outputs that cannot be summed, and scores that are no means over batches."""
    task = tmp_path / "CoLA"
    shutil.copytree(GLUE / "CoLA", task)
    shutil.copy(DATA / "dict.txt", task / "input0")
    flags = [task, *FINE_TUNING, *TASKS["CoLA"], "--max-update", 3, "--save-dir"]
    alone = train(*flags, "alone", "--update-freq", 2, cwd=tmp_path).stdout
    together = train(*flags, "together", "--update-freq", 1, "--distributed-world-size", 2, *how, cwd=tmp_path).stdout
    for update, row in train_inner(alone).items():
        for key in ("loss", "gnorm", "accuracy"):
            assert float(train_inner(together)[update][key]) == pytest.approx(float(row[key]), rel=1e-4)
    expected, actual = valid(alone)["3"], valid(together)["3"]
    for key in ("valid_loss", "valid_accuracy", "valid_mcc", "valid_f1"):
        assert float(actual[key]) == pytest.approx(float(expected[key]), rel=1e-4, abs=1e-4), key
