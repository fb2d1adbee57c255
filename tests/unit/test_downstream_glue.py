"""GLUE's own files: the columns, headers and splits of every task, real-world oddities, and mistakes in them."""

from __future__ import annotations

import pytest

from fairseq.errors import ConfigError, DataError, DataNotFoundError
from fairseq.finetune.glue_files import TASKS, find_task, present
from tests.downstream import preprocess, row, symbols, texts, write

HEADER = row("index", "sentence1", "sentence2", "label")
SENTENCES = ["The cat sat on the mat.", "A man rode the horse home.", "She reads a long book.", "It rains in May."]


def rte(folder, *rows, name="train.tsv", **how):
    return write(folder / "RTE" / name, HEADER, *rows, **how)


def good_rows(*labels):
    return [row(k, SENTENCES[k % 4], SENTENCES[(k + 1) % 4], label) for k, label in enumerate(labels)]


# Each task with the cells that matter in their place: {1} and {2} are texts, L is the label, x is anything else.
LAYOUTS = {
    "CoLA": {"train.tsv": ["x L x {1}"], "dev.tsv": ["x L x {1}"], "test.tsv": ["HEADER x x", "x {1}"]},
    "SST-2": {
        "train.tsv": ["HEADER x x", "{1} L"],
        "dev.tsv": ["HEADER x x", "{1} L"],
        "test.tsv": ["HEADER x x", "x {1}"],
    },
    "MRPC": dict.fromkeys(("train.tsv", "dev.tsv"), ["HEADER x x x x x", "L x x {1} {2}"])
    | {"test.tsv": ["HEADER x x x x x", "x x x {1} {2}"]},
    "STS-B": dict.fromkeys(("train.tsv", "dev.tsv"), ["HEADER" + 10 * " x", "x x x x x x x {1} {2} L"])
    | {"test.tsv": ["HEADER" + 9 * " x", "x x x x x x x {1} {2}"]},
    "QQP": dict.fromkeys(("train.tsv", "dev.tsv"), ["HEADER" + 6 * " x", "x x x {1} {2} L"])
    | {"test.tsv": ["HEADER x x x", "x {1} {2}"]},
    "MNLI": {"train.tsv": ["HEADER" + 12 * " x", "x x x x x x x x {1} {2} x L"]}
    | dict.fromkeys(
        ("dev_matched.tsv", "dev_mismatched.tsv"), ["HEADER" + 16 * " x", "x x x x x x x x {1} {2} x x x x x L"]
    )
    | dict.fromkeys(("test_matched.tsv", "test_mismatched.tsv"), ["HEADER" + 10 * " x", "x x x x x x x x {1} {2}"]),
    **dict.fromkeys(
        ("QNLI", "RTE", "WNLI"),
        dict.fromkeys(("train.tsv", "dev.tsv"), ["HEADER x x x x", "x {1} {2} L"])
        | {"test.tsv": ["HEADER x x x", "x {1} {2}"]},
    ),
}


def fill(pattern, first, second, label):
    cells = {"{1}": first, "{2}": second, "L": label}
    return row(*(cells.get(cell, cell) for cell in pattern.split() if cell != "HEADER"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_task(tmp_path, name):
    task = TASKS[name]
    labels = task.labels or ("3.800", "5.000", "3.333")
    for file, patterns in LAYOUTS[name].items():
        lines = [fill(patterns[0], "", "", "")] if patterns[0].startswith("HEADER") else []
        for label in labels:
            lines.append(fill(patterns[-1], f"{file} first {label}", f"{file} second {label}", label))
        write(tmp_path / "glue" / name / file, *lines)
    data = preprocess(tmp_path / "glue", f"glue/{name}")
    for split in task.splits:
        file = split.files[0]
        assert texts(data, "input0", split.name) == [f"{file} first {label}" for label in labels]
        if len(split.texts) == 2:
            assert texts(data, "input1", split.name) == [f"{file} second {label}" for label in labels]
        if task.regression and split.label:
            assert (data / "label" / f"{split.name}.label").read_text() == "0.76\n1\n0.6666\n"
        elif split.label:
            assert symbols(data, "label", split.name) == list(labels)
        else:
            assert not list((data / "label").glob(f"{split.name}.*"))
    assert (data / "input1").is_dir() == (len(task.splits[0].texts) == 2)


def test_quotes_carriage_returns_and_byte_order_marks_are_not_data(tmp_path):
    lines = good_rows("entailment", "not_entailment", "entailment")
    lines[1] = row(1, 'He said " no', SENTENCES[1], "not_entailment")
    rte(tmp_path / "glue", *lines, end="\r\n", bom=True)
    data = preprocess(tmp_path / "glue", "glue/RTE")
    assert texts(data, "input0", "train")[1] == 'He said " no'
    assert symbols(data, "label", "train") == ["entailment", "not_entailment", "entailment"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("RTE/train.tsv", row(0, *SENTENCES[:2], "entailment")),
        ("RTE/test.tsv", row(0, *SENTENCES[:2])),
        ("SST-2/train.tsv", row(SENTENCES[0], 1)),
        ("STS-B/dev.tsv", row(*range(7), *SENTENCES[:2], "3.2")),
        ("MRPC/msr_paraphrase_train.txt", row(1, 10, 20, *SENTENCES[:2])),
    ],
)
def test_a_heading_that_is_missing(tmp_path, file, line):
    """Its first example would be taken for it, and lost."""
    path = write(tmp_path / "glue" / file, line, line)
    with pytest.raises(DataError, match=f"{path}, line 1 is an example, .* names the columns"):
        preprocess(tmp_path / "glue", f"glue/{file.split('/')[0]}")


def test_mrpc_as_microsoft_ships_it(tmp_path):
    header = row("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    lines = [row(k // 2, 10 + k, 20 + k, f"first number {k}", f"second number {k}") for k in range(4)]
    folder = tmp_path / "glue/MRPC"
    write(folder / "msr_paraphrase_train.txt", header, *lines, bom=True)
    write(folder / "msr_paraphrase_test.txt", header, *lines[:2])
    write(folder / "dev_ids.tsv", row(11, 21), row(13, 23))
    data = preprocess(tmp_path / "glue", "glue/MRPC")
    assert texts(data, "input0", "train") == ["first number 0", "first number 2"]
    assert texts(data, "input1", "valid") == ["second number 1", "second number 3"]
    assert len(texts(data, "input0", "test")) == 2


def test_short_rows_and_empty_questions_of_qqp(tmp_path, capsys):
    lines = [row(k, 1, 2, "Is it true?", "Was it so?", k % 2) for k in range(6)]
    lines[2] = row(2, 1, 2, "Is it true?")
    lines[4] = row(4, 1, 2, "Is it true?", "", 0)
    write(tmp_path / "glue/QQP/train.tsv", row(*"abcdef"), *lines)
    data = preprocess(tmp_path / "glue", "glue/QQP")
    assert len(texts(data, "input0", "train")) == 5
    notes = capsys.readouterr().err
    assert "train.tsv: 1 rows with too few columns are left out" in notes
    assert "1 examples of train have an empty text, the first in" in notes and "line 6, text 2" in notes


def test_all_tasks_that_are_there(tmp_path, capsys):
    rte(tmp_path / "glue", *good_rows("entailment", "not_entailment"))
    write(tmp_path / "glue/CoLA/train.tsv", row("a", 1, "", SENTENCES[0]), row("a", 0, "*", SENTENCES[1]))
    write(tmp_path / "glue/diagnostic.tsv", row("index", "a", "b"), row(0, SENTENCES[0], SENTENCES[1]))
    assert [task.name for task in present(tmp_path / "glue")] == ["CoLA", "RTE", "AX"]
    data = preprocess(tmp_path / "glue", "glue")
    assert sorted(path.name for path in data.iterdir()) == ["AX-bin", "CoLA-bin", "RTE-bin"]
    assert sorted(path.name for path in (data / "AX-bin").iterdir()) == ["input0", "input1"]
    table = capsys.readouterr().out
    assert "entailment 1, not_entailment 1" in table and "--num-classes 2" in table


def test_without_training_data_classes_come_from_the_first_labels(tmp_path, capsys):
    rte(tmp_path / "glue", *good_rows("entailment", "not_entailment", "not_entailment"), name="dev.tsv")
    data = preprocess(tmp_path / "glue", "glue/RTE")
    assert (data / "label/dict.txt").read_text().startswith("not_entailment 2\nentailment 1\n")
    assert "--label-dict" in capsys.readouterr().err
    known = write(tmp_path / "known.txt", "entailment 9", "not_entailment 8")
    data = preprocess(tmp_path / "glue", "glue/RTE", "--label-dict", known, dest="other")
    assert (data / "label/dict.txt").read_bytes() == known.read_bytes()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (row(1, SENTENCES[0], SENTENCES[1]), "line 3 has 3 columns, but the file has 4"),
        (row(1, SENTENCES[0], SENTENCES[1], "maybe"), "line 3: unknown label 'maybe'; expected one of entailment"),
        (row(1, SENTENCES[0], SENTENCES[1], " "), "line 3: the label is missing"),
        (row(1, SENTENCES[0], " ", "entailment"), "line 3, text 2: the text is empty"),
        (row(1, "", "", "entailment"), "line 3, text 1: the text is empty"),
    ],
)
def test_mistakes_in_rows_name_file_and_line(tmp_path, line, sentence):
    rte(tmp_path / "glue", good_rows("entailment")[0], line)
    with pytest.raises(DataError) as caught:
        preprocess(tmp_path / "glue", "glue/RTE")
    assert str(tmp_path / "glue/RTE/train.tsv") in str(caught.value) and sentence in str(caught.value)
    assert not (tmp_path / "bin").exists()


def test_one_empty_text_of_a_pair_can_be_kept(tmp_path):
    rte(tmp_path / "glue", *good_rows("entailment"), row(1, SENTENCES[0], "", "not_entailment"))
    data = preprocess(tmp_path / "glue", "glue/RTE", "--keep-empty")
    assert texts(data, "input1", "train")[1] == ""


@pytest.mark.parametrize("score", ["good", "nan", ""])
def test_regression_labels_are_numbers(tmp_path, score):
    rows = [row(*("x" * 7), SENTENCES[0], SENTENCES[1], value) for value in ("1.5", score)]
    write(tmp_path / "glue/STS-B/train.tsv", row(*("x" * 10)), *rows)
    with pytest.raises(DataError, match=r"train\.tsv, line 3: .*number"):
        preprocess(tmp_path / "glue", "glue/STS-B")


def test_files_with_too_few_columns(tmp_path):
    write(tmp_path / "glue/RTE/train.tsv", "sentence,label", "a b,1")
    with pytest.raises(
        DataError, match=r"line 1 has 1 columns separated by tabs, but RTE has its texts in column 2, 3"
    ):
        preprocess(tmp_path / "glue", "glue/RTE")


def test_bytes_that_are_no_text(tmp_path):
    path = rte(tmp_path / "glue", *good_rows("entailment"))
    path.write_bytes(path.read_bytes() + b"1\tcaf\xe9\tx\tentailment\n")
    with pytest.raises(DataError, match=r"line 3 is not UTF-8 text"):
        preprocess(tmp_path / "glue", "glue/RTE")


def test_names_and_places(tmp_path):
    assert find_task("sts_b") is TASKS["STS-B"] and find_task("sst2").num_classes == 2
    with pytest.raises(ConfigError, match="unknown GLUE task 'MNIL'; did you mean 'MNLI'"):
        find_task("MNIL")
    with pytest.raises(DataNotFoundError, match="neither a folder RTE with"):
        preprocess(write(tmp_path / "glue/readme", "x").parent, "glue/RTE")
    with pytest.raises(DataNotFoundError, match="directory not found"):
        preprocess(tmp_path / "nowhere", "glue/RTE")
    with pytest.raises(DataNotFoundError, match="no folder of a GLUE task"):
        preprocess(tmp_path / "glue", "glue/all")


def test_the_folder_itself_can_be_given(tmp_path):
    folder = rte(tmp_path, *good_rows("entailment", "not_entailment")).parent
    assert len(texts(preprocess(folder, "glue/RTE"), "input0", "train")) == 2


def test_submission_files_and_metrics_are_complete():
    assert [name for task in TASKS.values() for name in task.submissions.values()] == [
        *("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"),
        *("QNLI.tsv", "RTE.tsv", "WNLI.tsv", "AX.tsv"),
    ]
    assert TASKS["STS-B"].regression and TASKS["MNLI"].num_classes == 3 and TASKS["CoLA"].metric == "mcc"
