"""``fairseq-predict``: forms of the answers, and tasks that answer files of their own."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest

from fairseq.cli import predict
from fairseq.errors import ConfigError, DataError
from fairseq.tasks.prediction import Prediction

CLASS = Prediction("good", {"good": 0.75, "bad": 0.25})
SET = Prediction(["good", "bad"], {"good": 0.75, "bad": 0.625, "fair": 0.125})


@pytest.mark.parametrize(
    ("kind", "answer", "row", "fields"),
    [
        ("classes", CLASS, "good\t0.750000", {"prediction": "good", "probability": 0.75}),
        ("choices", Prediction(1, {"0": 0.25, "1": 0.75}), "1\t0.750000", {"prediction": 1, "probability": 0.75}),
        ("sets", SET, "good bad", {"prediction": ["good", "bad"]}),
        ("sets", Prediction([], {"good": 0.1}), "", {"prediction": []}),
        ("values", Prediction(0.123456789), "0.123457", {"prediction": 0.123456789}),
        ("values", Prediction([1.5, -2.0]), "1.5 -2", {"prediction": [1.5, -2.0]}),
    ],
)
def test_forms(kind, answer, row, fields):
    table, lines = io.StringIO(), io.StringIO()
    predict.Writer(table, "tsv", kind).write([answer])
    heading = "prediction\tprobability" if "\t" in row else "prediction"
    assert table.getvalue() == f"{heading}\n{row}\n"
    predict.Writer(lines, "jsonl", kind).write([answer, answer])
    first, second = map(json.loads, lines.getvalue().splitlines())
    assert (first["index"], second["index"]) == (0, 1)
    assert {key: first[key] for key in fields} == fields
    assert first.get("probabilities") == answer.probabilities


class OwnFiles:
    """A task that writes answers itself."""

    def predict_file(self, hub, path, output, batch_size):
        Path(output).write_text(f"{path} {batch_size}\n")
        return 1

    def predict_split(self, hub, data, split, output, batch_size):
        Path(output).write_text(f"{data} {split} {batch_size}\n")
        return 2


def run(*words):
    predict.main(predict.get_parser().parse_args(["--path", "x", *map(str, words)]))


def test_tasks_that_answer_files_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load_hub", lambda args, beside=None: argparse.Namespace(task=OwnFiles()))
    questions = tmp_path / "questions.json"
    questions.write_text("{}")
    run("--input", questions, "--batch-size", 5)
    assert capsys.readouterr().out == f"{questions} 5\n"
    run("squad-bin", "--gen-subset", "valid", "--output", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "squad-bin valid 32\n"
    assert "2 answers" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="OwnFiles reads whole files of its own"):
        run("--input", "-")


def test_outputs_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot write"), predict._open_output(str(tmp_path / "none" / "out.tsv")):
        pass
