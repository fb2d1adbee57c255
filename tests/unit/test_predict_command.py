"""``fairseq-predict``: forms of the answers, and tasks that answer files of their own."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
import torch

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
    """A task that reads examples from files of its own, decodes the head's outputs and writes the answers."""

    head_name = "head"

    def file_examples(self, path, bpe):
        return Lengths([path, bpe])

    def split_examples(self, data, split):
        return Lengths([data, split, "x"])

    def decode(self, examples, sample, logits):
        return [(int(i), float(value)) for i, value in zip(sample["id"], logits, strict=True)]

    def write_predictions(self, path, examples, found):
        rows = sorted(row for rows in found for row in rows)
        Path(path).write_text("".join(f"{examples.items[i]} {value}\n" for i, value in rows))
        return len(rows)


class Lengths:
    """Items of one token, as their number."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return index

    def __len__(self):
        return len(self.items)

    def num_tokens_vec(self, indices):
        return indices * 0 + 1

    def collater(self, samples):
        return {"id": torch.tensor(samples), "net_input": {"src_tokens": torch.tensor(samples)}}


class Halves(torch.nn.Module):
    """A model whose one head gives half the number of an item."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.classification_heads = {"head": None}

    def forward(self, src_tokens, **unused):
        assert not self.training and not torch.is_grad_enabled()
        return src_tokens * self.weight, None


def run(*words):
    predict.main(predict.get_parser().parse_args(["--path", "x", *map(str, words)]))


def test_tasks_that_answer_files_of_their_own(tmp_path, monkeypatch, capsys):
    hub = argparse.Namespace(task=OwnFiles(), model=Halves(), bpe="bpe")
    monkeypatch.setattr(predict, "load_hub", lambda args, beside=None: hub)
    questions = tmp_path / "questions.json"
    questions.write_text("{}")
    run("--input", questions, "--batch-size", 1)
    assert capsys.readouterr().out == f"{questions} 0.0\nbpe 0.5\n"
    assert hub.model.training
    run("squad-bin", "--gen-subset", "valid", "--output", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "squad-bin 0.0\nvalid 0.5\nx 1.0\n"
    assert "3 answers" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the model has no head 'x'; its heads: head"):
        run("--input", questions, "--head", "x")
    with pytest.raises(ConfigError, match="OwnFiles reads whole files of its own"):
        run("--input", "-")


def test_outputs_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot write"), predict._open_output(str(tmp_path / "none" / "out.tsv")):
        pass
