"""SQuAD's files: reading, mistakes in them, the layout on disk, and the windows that come out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq.data.dictionary import Dictionary
from fairseq.data.encoders import build_bpe
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.errors import DataError, DataNotFoundError
from fairseq.finetune.layout import Job
from fairseq.finetune.spans import Rules, SpanDataset, WindowSizes, answer_text, decide_all, questions_in_memory
from fairseq.finetune.squad import load_squad, read_squad, write_squad, write_squad2
from tests.token_sets import TINY_BPE, squad, tiny_gpt2_dictionary

SETTINGS = GPT2BPEConfig(
    _name="gpt2", gpt2_encoder_json=str(TINY_BPE / "encoder.json"), gpt2_vocab_bpe=str(TINY_BPE / "vocab.bpe")
)
CONTEXT = "  The café\n“Zürich”   opened in 1995 😀 by the lake; it closed in 2001."
MADE = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "q1", "question": "When?", "answers": [{"text": "1995", "answer_start": 32}]},
                        {"id": "q2", "question": "Where?", "answers": [{"text": "by the lake", "answer_start": 39}]},
                        {"id": "q3", "question": "Who?", "answers": [{"text": "Zürich", "answer_start": 12}]},
                    ],
                }
            ]
        }
    ]
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def changed(**question: Any) -> dict[str, Any]:
    content = copy.deepcopy(MADE)
    content["data"][0]["paragraphs"][0]["qas"][0].update(question)
    return content


@pytest.fixture
def dictionary(tmp_path: Path) -> Dictionary:
    return Dictionary.load(str(tiny_gpt2_dictionary(tmp_path / "dict.txt")))


def test_reading(tmp_path: Path) -> None:
    moved: list[str] = []
    (paragraph,) = read_squad(write(tmp_path / "dev.json", MADE), moved=moved)
    assert paragraph.context == CONTEXT and [q.id for q in paragraph.questions] == ["q1", "q2", "q3"]
    assert all(CONTEXT[start : start + len(text)] == text for q in paragraph.questions for text, start in q.answers)
    assert moved == []


def test_an_answer_beside_its_place_is_moved_to_the_nearest(tmp_path: Path) -> None:
    moved: list[str] = []
    (paragraph,) = read_squad(
        write(tmp_path / "dev.json", changed(answers=[{"text": "in", "answer_start": 28}])), moved=moved
    )
    assert paragraph.questions[0].answers == (("in", CONTEXT.index("in 1995")),) and moved == ["q1"]


@pytest.mark.parametrize(
    "content, message",
    [
        ([], r'dev.json is not in the format of SQuAD: expected \{"data"'),
        ({"data": [{"title": "x"}]}, "dev.json, article 1: 'paragraphs' must be a list"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "dev.json, paragraph 1: its context must be a text"),
        ({"data": []}, "dev.json has no questions"),
        (changed(id="q2"), "the question id 'q2' occurs twice"),
        (changed(question=" "), "question 'q1': the question is empty"),
        (changed(question=None), "must have an 'id' and a 'question'"),
        (changed(answers=[]), "question 'q1' has no answer; .* --task squad2"),
        (changed(is_impossible=True), "question 'q1' is impossible, .* --task squad2"),
        (changed(answers=[{"text": "x", "answer_start": "3"}]), "integer 'answer_start'"),
        (changed(answers=[{"text": "", "answer_start": 3}]), "question 'q1': an answer is empty"),
        (
            changed(answers=[{"text": "1995", "answer_start": 500}]),
            r"dev.json, question 'q1': the answer span \[500, 504\) is outside the context of \d+ characters",
        ),
        (changed(answers=[{"text": "1995", "answer_start": -1}]), r"span \[-1, 3\) is outside the context"),
        (changed(answers=[{"text": "1996", "answer_start": 32}]), "reads '1995', not '1996', which is nowhere in it"),
    ],
)
def test_mistakes_name_file_and_question(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(read_squad(write(tmp_path / "dev.json", content)))
    assert "dev.json" in str(caught.value) and "\n" not in str(caught.value)


def test_no_json_and_no_files(tmp_path: Path, dictionary: Dictionary) -> None:
    (tmp_path / "dev.json").write_text("{")
    with pytest.raises(DataError, match="dev.json.* is not JSON"):
        list(read_squad(tmp_path / "dev.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match=r"none of the files of SQuAD 2.0: train-v2.0.json"):
        write_squad2(Job(tmp_path / "empty", tmp_path / "out", dictionary, SETTINGS))


def test_layout_keeps_everything(tmp_path: Path, dictionary: Dictionary) -> None:
    content = changed(answers=[], is_impossible=True)
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        write(tmp_path / name, content)
    (tmp_path / "out").mkdir()
    written = write_squad2(Job(tmp_path, tmp_path / "out", dictionary, SETTINGS))
    assert [(split.name, split.rows, split.unknown) for split in written.splits] == [("train", 3, 0), ("valid", 3, 0)]
    assert written.splits[0].labels == {"answer": 2, "no answer": 1}
    source = load_squad(tmp_path / "out", "valid")
    assert source.texts == [CONTEXT]
    assert [(record.id, record.context, record.answers) for record in source.records] == [
        ("q1", 0, ()),
        ("q2", 0, (("by the lake", 39),)),
        ("q3", 0, (("Zürich", 12),)),
    ]
    bpe = build_bpe(SETTINGS)
    line = CONTEXT.replace("\n", " ")
    assert dictionary.string(source.contexts[0]) == bpe.encode(line)
    assert len(source.spans(0)) == len(source.contexts[0])
    assert Dictionary.load(str(tmp_path / "out" / "input1" / "dict.txt")) == dictionary
    with pytest.raises(DataNotFoundError, match="Dataset not found: test"):
        load_squad(tmp_path / "out", "test")
    (tmp_path / "out" / "label" / "valid.jsonl").write_text('{"id": 1}\n' * 3)
    with pytest.raises(DataError, match="label/valid.jsonl, line 1: .* is not a question"):
        load_squad(tmp_path / "out", "valid")
    (tmp_path / "out" / "label" / "valid.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="valid.jsonl has 1 lines, but 3 belong to the data"):
        load_squad(tmp_path / "out", "valid")


def test_raw_text_without_an_encoder_is_refused(tmp_path: Path, dictionary: Dictionary) -> None:
    write(tmp_path / "train.json", squad(4, 1))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="this is raw text"):
        write_squad(Job(tmp_path, tmp_path / "out", dictionary, None))


def sharp_logits(batch: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, 2) that are 10 at the ``positions`` (B, 2) and 0 elsewhere."""
    logits = torch.zeros(*batch["net_input"]["src_tokens"].shape, 2)
    logits.scatter_(1, positions.unsqueeze(1), 10.0)
    return logits


@pytest.mark.parametrize("length, stride", [(64, 16), (20, 3), (17, 5), (15, 2), (14, 2)])
def test_targets_lead_back_to_the_answers(length: int, stride: int, dictionary: Dictionary) -> None:
    """A model that is right gives the answers of the file, whatever the windows."""
    asked = [(qa["id"], qa["question"], CONTEXT) for qa in MADE["data"][0]["paragraphs"][0]["qas"]]
    source = questions_in_memory(asked, build_bpe(SETTINGS), dictionary)
    assert len(source.contexts) == 1  # encoded once
    answers = [qa["answers"][0] for qa in MADE["data"][0]["paragraphs"][0]["qas"]]
    source.records = [
        record.__class__(record.id, record.context, ((answer["text"], answer["answer_start"]),))
        for record, answer in zip(source.records, answers, strict=True)
    ]
    dataset = SpanDataset(source, dictionary, WindowSizes(length, stride, 8, 12), "train")
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    tokens = batch["net_input"]["src_tokens"]
    assert tokens.size(1) <= length and (tokens[:, 0] == dictionary.bos()).all()
    assert batch["ntokens"] == int(batch["net_input"]["src_lengths"].sum()) == int(dataset.sizes.sum())
    assert (tokens.ne(dictionary.pad()).sum(1) == batch["net_input"]["src_lengths"]).all()
    rows = dataset.candidates(batch["id"], sharp_logits(batch, batch["target"]), 20)
    found = decide_all([rows], Rules(allow_no_answer=True))
    for question, answer in enumerate(answers):
        assert answer_text(source, question, found[question]) == answer["text"]


def test_odd_contexts(dictionary: Dictionary) -> None:
    source = questions_in_memory([("a", "When?", ""), ("b", "When?" * 40, "  \n ")], build_bpe(SETTINGS), dictionary)
    dataset = SpanDataset(source, dictionary, WindowSizes(16, 4, 8, 30))
    batch = dataset.collater([dataset[i] for i in range(len(dataset))])
    rows = dataset.candidates(batch["id"], torch.randn(*batch["net_input"]["src_tokens"].shape, 2), 5)
    assert (rows[:, 1:3] == -1).all() and rows[:, 0].unique().tolist() == [0, 1]  # nothing but no answer
    assert dataset.collater([]) == {}
