"""RACE, CommonsenseQA and SWAG: their own files to contexts, candidates and the number of the right one."""

from __future__ import annotations

import json

import pytest

from fairseq.errors import DataError, DataNotFoundError
from fairseq.tasks.choices import MultipleChoiceTask, SentenceRankingTask
from fairseq.tasks.configs import MultipleChoiceConfig, SentenceRankingConfig
from tests.downstream import preprocess, texts, write


def article(folder, split, level, number, questions, answers="ABCD", words="Some   words\nof the article."):
    content = {
        "article": words,
        "questions": questions,
        "options": [[f"choice {k}{c}" for c in "abcd"] for k in range(len(questions))],
        "answers": list(answers[: len(questions)]),
        "id": f"{level}{number}.txt",
    }
    write(folder / split / level / f"{number}.txt", json.dumps(content))
    return content


def test_race(tmp_path):
    article(tmp_path / "race", "train", "high", 3, ["What is _ and _ ?"], "D", "High article")
    article(tmp_path / "race", "train", "middle", 10, ["Who  came?", "Why?"])
    article(tmp_path / "race", "train", "middle", 2, ["First?"], "C")
    article(tmp_path / "race", "dev", "high", 1, ["Dev?"])
    article(tmp_path / "race", "test", "middle", 1, ["Middle?"])
    article(tmp_path / "race", "test", "high", 1, ["High?"], "B")
    data = preprocess(tmp_path / "race", "race")
    middle = "Some words of the article."
    assert texts(data, "input0", "train") == [middle, middle, middle, "High article"]
    assert texts(data, "input2", "train") == [
        *("First? choice 0b", "Who came? choice 0b", "Why? choice 1b", "What is choice 0b and choice 0b ?")
    ]
    assert texts(data, "input4", "test1") == ["High? choice 0d"]
    labels = {path.stem: path.read_text().split() for path in (data / "label").glob("*.label")}
    assert labels == {"train": ["2", "0", "1", "3"], "valid": ["0"], "test": ["0"], "test1": ["1"]}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("answers", ["E", "A"], "unknown label 'E'; expected one of A, B, C, D"),
        ("answers", ["A"], "2 questions, 2 options and 1 answers"),
        ("options", [["a", "b", "c"], ["a", "b", "c", "d"]], "'options' must have 4 texts, but has 3"),
        ("article", 3, "expected a JSON object with 'article'"),
        ("article", "", "1.txt, text 1: the text is empty"),
    ],
)
def test_mistakes_in_race(tmp_path, key, value, sentence):
    content = article(tmp_path / "race", "train", "middle", 1, ["Who?", "Why?"])
    path = write(tmp_path / "race/train/middle/1.txt", json.dumps({**content, key: value}))
    with pytest.raises(DataError) as caught:
        preprocess(tmp_path / "race", "race")
    assert str(path) in str(caught.value) and sentence in str(caught.value)


def question(number, key="B", count=5):
    choices = [{"label": "ABCDE"[k], "text": f"answer {number} {k}"} for k in range(count)]
    row = {"answerKey": key, "id": "x", "question": {"stem": f"What is {number}?", "choices": choices}}
    if key is None:
        del row["answerKey"]
    return json.dumps(row)


@pytest.mark.parametrize(("train", "valid"), [("train_rand_split", "dev_rand_split"), ("train", "valid")])
def test_commonsense_qa(tmp_path, train, valid):
    folder = tmp_path / "cqa"
    write(folder / f"{train}.jsonl", question(1), question(2, "E"))
    write(folder / f"{valid}.jsonl", question(3, "A"), "")
    write(folder / "test.jsonl", question(4, None))
    data = preprocess(folder, "commonsense_qa")
    assert texts(data, "input0", "train") == ["Q: What is 1?", "Q: What is 2?"]
    assert texts(data, "input5", "train") == ["A: answer 1 4", "A: answer 2 4"]
    assert (data / "label/train.label").read_text() == "1\n4\n"
    assert not (data / "label/test.label").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is not JSON"),
        (question(2, "F"), "line 2: unknown label 'F'"),
        (question(2, "A", 4), "line 2: 'choices' must have 5 texts, but has 4"),
        ('{"question": {"stem": 1}}', "line 2: expected a JSON object with 'stem' (str)"),
        (question(2, None), "line 2: this line has no label, unlike those before it"),
    ],
)
def test_mistakes_in_commonsense_qa(tmp_path, line, sentence):
    write(tmp_path / "cqa/train.jsonl", question(1), line)
    with pytest.raises(DataError) as caught:
        preprocess(tmp_path / "cqa", "commonsense_qa")
    assert "train.jsonl" in str(caught.value) and sentence in str(caught.value)


HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"


def test_swag(tmp_path):
    quoted = '0,v,1,s,"He said ""go"", then left.",He,gold,runs,"walks, fast",sits,sleeps,2'
    write(tmp_path / "swag/train.csv", HEADER, quoted)
    write(tmp_path / "swag/val.csv", HEADER, "0,v,1,s,One.,She,gold,a,b,c,d,0")
    write(tmp_path / "swag/test.csv", HEADER.removesuffix(",label"), "0,v,1,s,One.,She,gold,a,b,c,d")
    data = preprocess(tmp_path / "swag", "swag")
    assert texts(data, "input0", "train") == ['He said "go", then left.']
    assert texts(data, "input2", "train") == ["He walks, fast"]
    assert sorted(path.name for path in (data / "label").iterdir()) == ["manifest.json", "train.label", "valid.label"]


def test_mistakes_in_swag(tmp_path):
    write(tmp_path / "swag/train.csv", HEADER, "0,v,1,s,One.,She,gold,a,b,c,d,7")
    with pytest.raises(DataError, match=r"train\.csv, line 2: unknown label '7'"):
        preprocess(tmp_path / "swag", "swag")
    write(tmp_path / "swag/train.csv", HEADER, "0,v,1")
    with pytest.raises(DataError, match=r"train\.csv, line 2 has 3 columns, but the first line has 12"):
        preprocess(tmp_path / "swag", "swag")
    write(tmp_path / "swag/train.csv", "a,b")
    with pytest.raises(DataError, match="must name the columns, but sent1, sent2"):
        preprocess(tmp_path / "swag", "swag")


@pytest.mark.parametrize("task", ["race", "commonsense_qa", "swag"])
def test_empty_folders(tmp_path, task):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataNotFoundError, match="none has no"):
        preprocess(tmp_path / "none", task)
    with pytest.raises(DataNotFoundError, match="directory not found"):
        preprocess(tmp_path / "nowhere", task)


def test_the_tasks_read_what_was_written(tmp_path):
    article(tmp_path / "race", "train", "middle", 1, ["Who came?", "Why _ ?"], "BD")
    data = preprocess(tmp_path / "race", "race", dest="race-bin")
    config = SentenceRankingConfig(
        data=str(data), num_classes=4, init_token=0, separator_token=2, seed=1, no_shuffle=True
    )
    dataset = SentenceRankingTask.setup_task(config).load_dataset("train")
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["target"].tolist() == [1, 3] and "net_input4" in batch
    write(tmp_path / "cqa/train.jsonl", question(1), question(2, "E"))
    data = preprocess(tmp_path / "cqa", "commonsense_qa", dest="cqa-bin")
    config = MultipleChoiceConfig(
        data=str(data), num_classes=5, init_token=0, seed=1, no_shuffle=True, context_first=True
    )
    task = MultipleChoiceTask.setup_task(config)
    dataset = task.load_dataset("train")
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["target"].tolist() == [1, 4] and "net_input5" in batch
    first = batch["net_input2"]["src_tokens"][0].tolist()
    assert first[0] == 0 and first.count(2) == 2  # <s> Q: ... </s> A: ... </s>
