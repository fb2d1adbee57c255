"""From a GLUE folder to predictions, with the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairseq.cli import predict
from fairseq.errors import ConfigError, DataError, DataNotFoundError
from tests.common import error_sentence, run_command
from tests.downstream import GPT2, dictionary_of_ids, row, write

MODEL = (
    "--cpu --arch roberta --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--max-positions 64 --init-token 0 --separator-token 2 --optimizer adam --lr-scheduler fixed --lr 0.02 --batch-size 8 "
    "--max-epoch 8 --no-epoch-checkpoints --num-workers 0 --seed 1 --dropout 0 --attention-dropout 0 --pooler-dropout 0"
).split()
PAIRS = [("red", "blue", "not_entailment"), ("red", "red", "entailment"), ("blue", "blue", "entailment")] * 8
TEST = [
    ("The house is blue.", "It is blue."),
    ("The house is red.", "It is blue."),
    ("The house is red.", "It is red."),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``RTE-bin`` and a model of it in ``run``."""
    home = tmp_path_factory.mktemp("downstream")
    header = row("index", "sentence1", "sentence2", "label")
    rows = [row(k, f"The house is {a}.", f"It is {b}.", label) for k, (a, b, label) in enumerate(PAIRS)]
    for name in ("train", "dev"):
        write(home / f"GLUE/RTE/{name}.tsv", header, *rows)
    write(home / "GLUE/RTE/test.tsv", header.removesuffix("\tlabel"), *(row(k, *pair) for k, pair in enumerate(TEST)))
    dictionary_of_ids(home)
    flags = ("--data-dir", "GLUE", "--dest", "RTE-bin", "--srcdict", "dict.txt", "--workers", 2)
    done = run_command("preprocess-task", "--task", "glue/RTE", *flags, *GPT2, cwd=home)
    assert "train    24     408   0.00 %  entailment 16, not_entailment 8" in done.stdout
    hint = next(line for line in done.stdout.splitlines() if line.startswith("train with: fairseq-train "))
    run_command(
        "train", *hint.removeprefix("train with: fairseq-train ").split(), *MODEL, "--save-dir", "run", cwd=home
    )
    return home


def test_predictions_of_split_and_of_texts(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    run_here("RTE-bin", "--path", "run", "--gen-subset", "test", "--output", "split.tsv")
    split = [line.split("\t") for line in (place / "split.tsv").read_text().splitlines()]
    assert split[0] == ["prediction", "probability"]
    assert {label for label, _ in split[1:]} <= {"entailment", "not_entailment"} and len(split) == 4
    text = "".join(row(*pair) + "\n" for pair in TEST)
    done = run_command("predict", "--path", "run", "--input", "-", "--format", "jsonl", *GPT2, cwd=place, text=text)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == [label for label, _ in split[1:]]
    assert [answer["probability"] for answer in answers] == pytest.approx([float(p) for _, p in split[1:]], abs=1e-4)
    assert set(answers[0]["probabilities"]) == {"entailment", "not_entailment"}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("a\tb", "c"), "texts.tsv, line 2 has 1 texts separated by tabs, but those before have 2"),
        (("a\tb\tc",), "texts.tsv, line 1 has 3 texts separated by tabs, but must have 1 or 2"),
        (("17 18 19 20 21 22 23 24 25 26",), "encode it twice"),
    ],
)
def test_mistakes_in_texts(place: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...], sentence: str):
    monkeypatch.chdir(place)
    write(place / "texts.tsv", *lines)
    with pytest.raises(DataError, match=sentence):
        run_here("--path", "run", "--input", "texts.tsv", *GPT2)


@pytest.mark.parametrize("form", ["tsv", "jsonl"])
def test_a_line_without_text_has_an_empty_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
):
    monkeypatch.chdir(place)
    first, second = (row(*pair) for pair in TEST[:2])
    answers = []
    for lines in ((first, second), ("", first, " \t ", second, "")):
        write(place / "texts.tsv", *lines)
        run_here("--path", "run", "--input", "texts.tsv", "--output", "answers", "--format", form, *GPT2)
        answers.append((place / "answers").read_text().splitlines()[1 if form == "tsv" else 0 :])
    assert "3 lines without text have an empty answer" in capsys.readouterr().err
    whole, gaps = answers
    if form == "tsv":
        assert gaps == ["\t", whole[0], "\t", whole[1], "\t"]
    else:
        found = [json.loads(line) for line in gaps]
        assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
        labels = [json.loads(line)["prediction"] for line in whole]
        assert [row["prediction"] for row in found] == [None, labels[0], None, labels[1], None]


def test_mistakes_of_predict(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    with pytest.raises(ConfigError, match="give either a preprocessed directory DATA or texts"):
        run_here("--path", "run")
    with pytest.raises(DataNotFoundError, match="Dataset not found: valid7"):
        run_here("RTE-bin", "--path", "run", "--gen-subset", "valid7")
    with pytest.raises(DataNotFoundError, match="input file not found: nothing.txt"):
        run_here("--path", "run", "--input", "nothing.txt")
    with pytest.raises(ConfigError, match="no head other; its heads are sentence_classification_head"):
        run_here("RTE-bin", "--path", "run", "--head", "other")


def test_the_dictionaries_of_the_data_serve_when_those_of_the_training_are_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    (place / "RTE-bin").rename(place / "moved")
    try:
        run_here("moved", "--path", "run")
    finally:
        (place / "moved").rename(place / "RTE-bin")
    assert len(capsys.readouterr().out.splitlines()) == 4


def run_here(*words: object) -> None:
    """The command in this process, where many cases are quick."""
    predict.main(predict.get_parser().parse_args([str(word) for word in words]))


def test_mistakes_of_preprocessing(place: Path):
    flags = ("--data-dir", "GLUE", "--dest", "RTE-bin", "--srcdict", "dict.txt")
    done = run_command("preprocess-task", "--task", "glue/RTE", *flags, *GPT2, cwd=place, expect=2)
    assert "replace it with --overwrite" in error_sentence(done, "preprocess-task")
