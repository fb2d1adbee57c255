"""Mistakes that a user makes when training: one sentence, a non-zero exit code, nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fairseq.cli.train import cli_main
from tests.runs import DATA, TINY_FLAGS, run

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs ``fairseq-train`` in this process, where many cases are quick; returns the one sentence it failed with."""
    monkeypatch.chdir(tmp_path)

    def run_and_fail(*args: object) -> str:
        with pytest.raises(SystemExit) as ended:
            cli_main(argv=[str(arg) for arg in args])
        assert ended.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(errors) == 1 and errors[0].startswith("fairseq-train: error: "), errors
        return errors[0]

    return run_and_fail


def test_exit_status_and_output_of_the_command(tmp_path: Path) -> None:
    done = run("fairseq.cli.train", "no-such-folder", *SIZES, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("fairseq-train: error: ")


SIZES = [*TINY_FLAGS, "--max-update", 2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch", "robreta"], ["robreta", "did you mean 'roberta'"]),
        (["--task", "maskedlm"], ["maskedlm", "masked_lm"]),
        (["--task", "translation"], ["translation", "out of scope"]),
        (["--arch", "transformer"], ["transformer", "out of scope"]),
        (["--encoder-layer", "2"], ["--encoder-layer", "--encoder-layers"]),
        (["--optimizer", "adm"], ["adm", "adam"]),
        (["--optimizer", "composite"], ["composite", "out of scope", "lr_scales"]),
        (["--tpu"], ["tpu", "out of scope"]),
        (["--distributed-world-size", "0"], ["--distributed-world-size", "at least 1"]),
        (["--restore-file", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["--finetune-from-model", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["--batch-size", "0"], ["--batch-size", "at least 1"]),
        (["--update-freq", "0"], ["--update-freq", "at least 1"]),
        (["--mask-prob", "1.5"], ["--mask-prob", "1.5"]),
        (["--encoder-attention-heads", "5"], ["5", "32"]),
        (["--adam-betas", "__import__('os').system('touch pwned')"], ["betas"]),
        (["--best-checkpoint-metric", "los"], ["los", "did you mean 'loss'"]),
        (["--valid-subset", "validation"], ["validation"]),
        (["--lr-scheduler", "cosine", "--min-lr", "1.0"], ["min_lr"]),
        (["--log-interval", "0"], ["--log-interval", "0"]),
        (["--save-interval", "0"], ["--save-interval", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--num-workers", "-1"], ["--num-workers", "-1"]),
        (["--lr", "[]"], ["lr", "empty"]),
        (["--max-valid-steps", "-1"], ["--max-valid-steps", "-1"]),
        (["--optimizer-overrides", "3"], ["--optimizer-overrides", "dictionary"]),
        (["--continue-once", "nowhere.pt"], ["nowhere.pt", "does not exist"]),
        (["--update-freq", "1000", "--skip-remainder-batch"], ["update_freq=1000", "--skip-remainder-batch"]),
        (["--tensorboard-logdir", __file__], ["tensorboard_logdir"]),
        (["--combine-valid-subsets", "--valid-subset", "other"], ["not loaded: other"]),
    ],
)
def test_wrong_settings(flags: list[str], words: list[str], tmp_path: Path, refused: Refused) -> None:
    sizes = SIZES
    if "cosine" in flags:
        sizes = [x for i, x in enumerate(SIZES) if x != "--total-num-update" and SIZES[i - 1] != "--total-num-update"]
    sentence = refused(DATA, *sizes, *flags)
    for word in words:
        assert word in sentence, sentence
    assert not (tmp_path / "pwned").exists()


def copy_data(tmp_path: Path) -> Path:
    folder = tmp_path / "data-bin"
    shutil.copytree(DATA, folder)
    return folder


def test_missing_and_empty_data(tmp_path: Path, refused: Refused) -> None:
    assert "no-such-folder" in refused("no-such-folder", *SIZES)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("empty", *SIZES)


@pytest.mark.parametrize("file", ["train.idx", "train.bin", "valid.idx", "valid.bin"])
def test_truncated_data(file: str, tmp_path: Path, refused: Refused) -> None:
    folder = copy_data(tmp_path)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2 + 1])
    assert file.split(".")[0] in refused(folder, *SIZES)


def test_dictionary_that_does_not_fit(tmp_path: Path, refused: Refused) -> None:
    folder = copy_data(tmp_path)
    rows = (folder / "dict.txt").read_text().splitlines()
    (folder / "dict.txt").write_text("\n".join(rows[:100]) + "\n")
    assert "dict" in refused(folder, *SIZES)


def test_malformed_dictionary_line(tmp_path: Path, refused: Refused) -> None:
    folder = copy_data(tmp_path)
    rows = (folder / "dict.txt").read_text().splitlines()
    rows[6] = "word-without-count"
    (folder / "dict.txt").write_text("\n".join(rows) + "\n")
    sentence = refused(folder, *SIZES)
    assert "dict.txt" in sentence and "7" in sentence and "word-without-count" in sentence


def test_long_validation_sample_needs_the_flag(tmp_path: Path, refused: Refused) -> None:
    flags = [flag for flag in SIZES if flag != "--skip-invalid-size-inputs-valid-test"]
    sentence = refused(DATA, *flags, "--tokens-per-sample", 16, "--max-positions", 16, "--sample-break-mode", "eos")
    assert "--skip-invalid-size-inputs-valid-test" in sentence
    assert not list(tmp_path.rglob("*.pt")), "it is noticed before the first update"


def test_a_failing_validation_costs_no_updates(tmp_path: Path, refused: Refused) -> None:
    assert "accuracy" in refused(DATA, *SIZES, "--best-checkpoint-metric", "accuracy")
    saved = torch.load(tmp_path / "checkpoints" / "checkpoint_last.pt", weights_only=False)
    assert saved["optimizer_history"][-1]["num_updates"] == 2


def test_extra_validation_files_are_noticed(tmp_path: Path, refused: Refused) -> None:
    folder = copy_data(tmp_path)
    for end in ("bin", "idx"):
        shutil.copy(folder / f"valid.{end}", folder / f"valid1.{end}")
    assert "--ignore-unused-valid-subsets" in refused(folder, *SIZES)


def test_broken_checkpoints(tmp_path: Path, refused: Refused) -> None:
    cli_main(argv=[str(DATA), *map(str, SIZES)])
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    content = last.read_bytes()
    for name, data in {"cut.pt": content[: len(content) // 2], "text.pt": b"hello", "nothing.pt": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert name in refused(DATA, *SIZES, "--restore-file", name)
    sentence = refused(DATA, *SIZES, "--encoder-embed-dim", 64, "--restore-file", last)
    assert "does not fit the model: it was trained with encoder_embed_dim 32, not 64; give the same" in sentence
    assert last.read_bytes() == content


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


def test_checkpoint_with_a_callable_is_refused(tmp_path: Path, refused: Refused) -> None:
    torch.save({"model": {}, "extra_state": Payload()}, tmp_path / "evil.pt")
    sentence = refused(DATA, *SIZES, "--restore-file", "evil.pt")
    assert "system" in sentence and "evil.pt" in sentence
    assert not (tmp_path / "pwned").exists()


def test_diverged_run_names_update_and_tensor(tmp_path: Path, refused: Refused) -> None:
    cli_main(argv=[str(DATA), *map(str, SIZES)])
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    before = last.read_bytes()
    state = torch.load(last, weights_only=True)
    state["model"]["encoder.sentence_encoder.layers.1.fc1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    sentence = refused(DATA, *SIZES, "--max-update", 9, "--restore-file", "nan.pt")
    assert "update 3" in sentence and "layers.1.fc1.weight" in sentence
    assert last.read_bytes() == before
