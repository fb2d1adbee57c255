"""What a newcomer types first, and forgets: each answer is short, and says what to type instead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairseq.cli import hydra_train, preprocess, train
from tests.runs import DATA


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        (train, [], "fairseq-train: error: the following arguments are required: data"),
        (train, [DATA, "--batch-size", "2"], "the learning rate is missing: give --lr, for example --lr 0.0005"),
        (hydra_train, [], "no configuration is chosen; for example: fairseq-hydra-train --config-dir"),
        (preprocess, [], "fairseq-preprocess: error: give --only-source (masked language models), or --source-lang"),
        (preprocess, ["--only-source", "--trainpref", "no-text"], "input file not found: no-text"),
    ],
)
def test_what_is_forgotten(
    command: object,
    words: list[object],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.cli_main(argv=[str(word) for word in words])  # type: ignore[attr-defined]
    printed = capsys.readouterr()
    assert ended.value.code == 2 and sentence in printed.err and len(printed.err) < 300 and printed.out == ""
    assert [name for name in os.listdir(tmp_path) if name != "data-bin"] == []


def test_help_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.cli_main(argv=["--arch", "roberta_base", "--help"])
    text = capsys.readouterr().out
    assert "example:\n  fairseq-train data-bin --arch roberta_base" in text[:400]
    assert "[[" not in text and "scoring:" not in text and "[768]" in text  # the width of roberta_base
