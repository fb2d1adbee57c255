"""Text, JSON and CSV that no data has by intention: each is one sentence with its place, and long fields are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq.cli import preprocess_task
from fairseq.data import text
from fairseq.data.encoders import guard
from fairseq.data.preprocessing import json_text
from fairseq.data.text import find_offsets, json_value, read_blocks
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.finetune import reading
from fairseq.finetune.choices import read_article, read_examples, read_questions
from fairseq.finetune.layout import check_class, count_classes
from fairseq.finetune.sentences import choice_labels
from fairseq.finetune.squad import read_squad
from fairseq.glue.scores import RESULT, find_result
from fairseq.interop.vocabulary import special_ids

DEEP = "[" * 100_000
HALF = "\\ud800"  # as JSON writes it


def test_json_values() -> None:
    assert json_value('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    for wrong, message in (
        (DEEP, "it is nested too deep"),
        (f'["{HALF}"]', r"it has half of a surrogate pair, '\\ud800'"),
        (f'{{"{HALF.upper().replace("U", "u", 1)}": 1}}', "half of a surrogate pair"),
        ('["\\udc00\\ud800"]', "half of a surrogate pair"),
        ("[", "Expecting value"),
    ):
        with pytest.raises(ValueError, match=message):
            json_value(wrong)


def squad(word: str) -> str:
    question = {"id": "1", "question": "what", "answers": [{"text": "it", "answer_start": 0}]}
    return json.dumps({"data": [{"paragraphs": [{"context": "it WORD", "qas": [question]}]}]}).replace("WORD", word)


def race(word: str) -> str:
    content = {"article": "it WORD", "questions": ["what _"], "options": [["a", "b", "c", "d"]], "answers": ["A"]}
    return json.dumps(content).replace("WORD", word)


def commonsense(word: str) -> str:
    choices = [{"label": letter, "text": letter} for letter in "ABCDE"]
    return json.dumps({"answerKey": "A", "question": {"stem": "WORD", "choices": choices}}).replace("WORD", word)


@pytest.mark.parametrize(
    ("content", "read"), [(squad, read_squad), (race, read_article), (commonsense, read_questions)]
)
def test_half_pairs_and_deep_nests(content: Callable[[str], str], read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content("is"))
    assert len(list(read(path))) == 1
    path.write_text(content(HALF))
    with pytest.raises(DataError, match=r"file\.json.* half of a surrogate pair"):
        list(read(path))
    path.write_text(DEEP)
    with pytest.raises(DataError, match=r"file\.json.* nested too deep"):
        list(read(path))


def test_json_lines_of_a_corpus() -> None:
    assert json_text('{"text": "a\\nb"}', "corpus") == "a\nb"
    for line, message in ((DEEP, "nested too deep"), (f'{{"text": "{HALF}"}}', "half of a surrogate"), ("[]", r"\[\]")):
        with pytest.raises(DataError, match=f"corpus: expected a JSON object with a string field 'text'.*{message}"):
            json_text(line, "corpus")


COLUMNS = "sent1,sent2,ending0,ending1,ending2,ending3,label\n"


def test_long_fields_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    long = "word " * 60_000
    path.write_text(f"{COLUMNS}{long},it,a,b,c,d,1\n")
    (example,) = read_examples(path)
    assert example.texts == (long, "it a", "it b", "it c", "it d") and example.label == "1"


def test_lines_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text, reading):
        monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    path = tmp_path / "train.txt"
    path.write_text("short\n" + "word " * 150 + "\nshort\n")
    assert [len(line) for block in read_blocks(path) for line in block] == [5, 750, 5]
    path.write_text("short\n" + "word " * 1000 + "\n")
    uses: list[Callable[[], Any]] = [
        lambda: list(read_blocks(path)),
        lambda: find_offsets(path, 7),
        lambda: list(reading.read_lines(path)),
    ]
    for use in uses:
        with pytest.raises(DataError, match=r"train\.txt has a line of more than 1,000 bytes.*divide it into lines"):
            use()


def test_special_symbols_are_no_labels() -> None:
    from collections import Counter

    labels = count_classes(Counter({"good": 2, "<pad>": 1, "<unk>": 1, "<s>": 1, "</s>": 1}))
    check_class("good", labels, "train.label, line 1", "training data")
    for name in ("<pad>", "<unk>", "<s>", "</s>"):
        with pytest.raises(DataError, match=r"train\.label, line 2: the label '.*' is one of the special symbols"):
            check_class(name, labels, "train.label, line 2", "training data")
    with pytest.raises(DataError, match=r"'bad' is not among those of the training data \(good\)"):
        check_class("bad", labels, "train.label, line 2", "training data")


@pytest.mark.parametrize(
    ("task", "file", "content", "place"),
    [
        ("plain", "train.raw.input0", "a b\nLONG\n", r"train\.raw\.input0, line 2: "),
        ("swag", "train.csv", f"{COLUMNS}a,b,c,d,e,LONG,1\n", r"train\.csv, line 2, text 5: "),
        ("race", "train/middle/1.txt", race("LONG"), r"train/middle/1\.txt, text 1: "),
        ("commonsense_qa", "train.jsonl", commonsense("LONG"), r"train\.jsonl, line 1, text 1: "),
        ("squad", "train-v1.1.json", squad("LONG"), r"train-v1\.1\.json, paragraph 1: "),
        ("conll", "train.txt", "a X\n\nLONG X\n", r"train\.txt, line 3: "),
    ],
)
def test_texts_too_long_to_encode_have_a_place(
    task: str, file: str, content: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LONGEST_RUN", 1000)
    path = tmp_path / "data" / file
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("LONG", "x" * 1001))
    (tmp_path / "data" / "train.label").write_text("good\nbad\n")
    (tmp_path / "dict.txt").write_text("a 1\nb 1\n")
    flags = ["--data-dir", str(tmp_path / "data"), "--dest", str(tmp_path / "out"), "--srcdict", f"{tmp_path}/dict.txt"]
    args = preprocess_task.get_parser().parse_args(["--task", task, *flags])
    with pytest.raises(DataError, match=f"{place}a text has 1,001 characters without a blank .* at most 1,000"):
        preprocess_task.main(args)


def test_preprocessed_text_that_is_damaged(tmp_path: Path) -> None:
    rows, labels = tmp_path / "train.jsonl", tmp_path / "label" / "train.label"
    rows.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl, line 2 is not UTF-8 text"):
        reading.read_rows(rows, 2)
    rows.write_text(f"1\n{DEEP}\n")
    with pytest.raises(DataError, match=r"train\.jsonl, line 2 is not JSON: it is nested too deep"):
        reading.read_rows(rows, 2)
    labels.parent.mkdir()
    labels.write_bytes(b"0\n\xff\n")
    with pytest.raises(DataError, match=r"train\.label, line 2 is not UTF-8 text"):
        choice_labels(str(tmp_path), "train", 2, 2)
    for label in ("9" * 5000, "\u00b2", "-1", "2"):
        labels.write_text(f"0\n{label}\n")
        with pytest.raises(DataError, match=r"train\.label: line 2 must be the number of a choice, 0 to 1"):
            choice_labels(str(tmp_path), "train", 2, 2)


@pytest.mark.parametrize("content", ["[]", '{"model": {"vocab": [1]}}', '{"model": 5}', '{"added_tokens": [{}]}', DEEP])
def test_tokenizers_of_other_programs_that_are_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json|the files of the tokenizer in .* are damaged"):
        special_ids(tmp_path, {}, 10)


@pytest.mark.parametrize("content", ["{", "[]", '{"curve": 5, "seconds": 1}', '{"curve": [{}]}', DEEP, '"\\ud800"'])
def test_results_that_are_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(content)
    with pytest.raises(ConfigError, match=r"is damaged; delete it, and the run is repeated"):
        find_result(tmp_path, None)  # type: ignore[arg-type]
    assert find_result(tmp_path / "nowhere", None) is None  # type: ignore[arg-type]
