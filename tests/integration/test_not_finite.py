"""Numbers that are not numbers: averages over nothing are left out, and NaN neither replaces nor serves a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.cli.train import cli_main
from fairseq.errors import CheckpointError, NonFiniteError
from fairseq.logging import metrics
from fairseq.models.loading import first_not_finite, load_model_ensemble_and_task
from fairseq.training.run_state import EarlyStop
from tests.runs import DATA, TINY_FLAGS, json_lines, run

SHORT = [*TINY_FLAGS, "--max-update", "2"]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one error of a training."""
    with pytest.raises(SystemExit) as ended:
        cli_main(argv=words)
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    return errors[0]


def test_a_run_without_targets_stops(tmp_path: Path) -> None:
    done = run("fairseq.cli.train", DATA, *SHORT, "--mask-prob", "1e-9", cwd=tmp_path)
    assert done.returncode == 2
    assert "none of the 2 updates had anything to predict" in done.stderr and "--mask-prob" in done.stderr
    rows = json_lines(done.stdout)
    assert rows and not any("loss" in row or "ppl" in row for row in rows)
    assert not (tmp_path / "checkpoints" / "checkpoint_last.pt").exists()


def test_a_validation_without_targets_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairseq.tasks.masked_lm import MaskedLMTask

    load = MaskedLMTask.load_dataset

    def without_valid_masks(self: Any, split: str, *args: Any, **kwargs: Any) -> None:
        self.cfg.mask_prob = 1e-9 if split == "valid" else 0.15
        load(self, split, *args, **kwargs)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MaskedLMTask, "load_dataset", without_valid_masks)
    error = fails([str(DATA), *SHORT, "--patience", "2"], capsys)
    assert "no batch of 'valid' has anything to predict" in error
    assert (tmp_path / "checkpoints" / "checkpoint_last.pt").exists()  # the updates are not lost


@pytest.mark.parametrize("zero", [0, torch.tensor(0)])
def test_batches_without_targets_leave_averages_alone(zero: Any) -> None:
    from fairseq.criterions.masked_lm import MaskedLmLoss

    with metrics.aggregate(new_root=True) as meters:
        MaskedLmLoss.reduce_metrics([{"loss": 0.0, "sample_size": zero}])
        assert not meters.get_smoothed_values()
        MaskedLmLoss.reduce_metrics([{"loss": torch.tensor(2.0).log() * 3, "sample_size": 3 + zero}])
        MaskedLmLoss.reduce_metrics([{"loss": 0.0, "sample_size": zero}])
        assert meters.get_smoothed_values() == {"loss": pytest.approx(1.0), "ppl": pytest.approx(2.0)}


def test_nan_is_no_improvement() -> None:
    stop, nan = EarlyStop(), float("nan")
    assert [stop.update(value, maximize=False) for value in (nan, nan, 2.0, nan, 3.0, 1.0)] == [1, 2, 0, 1, 2, 0]
    fresh = EarlyStop()
    fresh.update(nan, maximize=True)
    resumed = EarlyStop()
    resumed.load_state_dict(fresh.state_dict())  # type: ignore[arg-type]
    assert resumed.update(nan, maximize=True) == 2


def test_first_not_finite() -> None:
    good, large = torch.ones(3), torch.full((3,), 3e38)  # whose sum overflows
    assert first_not_finite([("a", good), ("b", large), ("c", torch.tensor([1]))]) is None
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    assert first_not_finite([("a", good), ("b.c", bad)]) == "2 of the 3 values of b.c are NaN or infinite"


def test_nan_weights_replace_no_checkpoint_and_are_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairseq.training.trainer import Trainer

    monkeypatch.chdir(tmp_path)
    cli_main(argv=[str(DATA), *SHORT])
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    before, updated = last.read_bytes(), Trainer._finish_update

    def poisoned(self: Any, *args: Any) -> Any:  # what an update with an epsilon of 0 leaves
        self.model.encoder.lm_head.bias.data[5] = float("nan")
        return updated(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_update", poisoned)
        capsys.readouterr()
        error = fails([str(DATA), *SHORT, "--max-update", "3", "--disable-validation"], capsys)
    assert "after update 3 1 of the" in error and "lm_head.bias are NaN" in error and "nothing is saved" in error
    assert last.read_bytes() == before

    state = torch.load(last, weights_only=True)
    state["model"]["encoder.lm_head.bias"][5] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"nan\.pt cannot be used: 1 of the \d+ values of encoder\.lm_head\.bias"):
        load_model_ensemble_and_task([str(tmp_path / "nan.pt")])
    for module, arguments in (
        ("fairseq.cli.validate", [DATA, "--path", "nan.pt", "--batch-size", 4, "--cpu"]),
        ("fairseq.cli.fill_mask", ["--path", "nan.pt", "--data", DATA, "a <mask>"]),
    ):
        done = run(module, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and "nan.pt cannot be used" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_outputs_that_are_nan_are_no_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.models.roberta.hub_interface import RobertaHubInterface

    monkeypatch.setattr(RobertaHubInterface, "_mask_logits", lambda self, batch: torch.full((1, 40), float("nan")))
    hub = RobertaHubInterface.__new__(RobertaHubInterface)
    torch.nn.Module.__init__(hub)
    hub.model = torch.nn.Linear(1, 1)

    class Task:
        from fairseq.data.dictionary import Dictionary

        source_dictionary = Dictionary()

    hub.task = Task()
    with pytest.raises(NonFiniteError, match="the probabilities at <mask> are NaN"):
        hub._candidates([torch.tensor([0, 4, 2])], 1)
